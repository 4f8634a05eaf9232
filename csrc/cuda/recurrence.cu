// The entry points: which family of kernels takes a call, and which policy multiplies its dtype.
//
// torch has made the device current, but for its own CUDA runtime; this library links a runtime of its own.

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>

#include "cuda/families.h"

namespace fastlstm::cuda {

namespace {

// Whether a family may be chosen, and with which shape. FASTLSTM_CUDA_KERNELS names them, as in "step", "cluster grid",
// or "grid:1" for shape 1 of those for the call's sizes: for comparisons, and to avoid a family that may be broken.
struct Wanted {
  bool family = true;
  int shape = kAnyShape;

  explicit Wanted(Family which) {
    constexpr const char* kNames[] = {"cluster", "grid", "step"};
    const char *kernels = std::getenv("FASTLSTM_CUDA_KERNELS"), *name = kNames[static_cast<int>(which)];
    if (kernels == nullptr || std::strcmp(kernels, "auto") == 0) return;
    const char* found = std::strstr(kernels, name);
    family = found != nullptr;
    if (family && found[std::strlen(name)] == ':') shape = std::atoi(found + std::strlen(name) + 1);
  }
};

// use(family, its kernels) for each family that the policy has.
template <class Policy, class Args, class Use>
void visit_families(const Args& args, const Use& use) {
  if constexpr (kOnChip<Policy>) {
    if (args.weight_hr[0] != nullptr) {
      use(Family::kCluster, ProjectedClusterKernels<Policy, Args>());
      use(Family::kGrid, ProjectedGridKernels<Policy, Args>());
    } else {
      use(Family::kCluster, ClusterKernels<Policy, Args>());
      use(Family::kGrid, GridKernels<Policy, Args>());
    }
  }
  use(Family::kStep, StepKernels<Policy, Args>());
}

// use(the kernels of one family for the call's dtype).
template <class Args, class Use>
void with_family(const Args& args, Family which, const Use& use) {
  with_policy(args, [&](auto chosen) {
    visit_families<typename decltype(chosen)::Policy>(args, [&](Family family, auto kernels) {
      if (family == which) use(kernels);
    });
  });
}

// torch has made the device the current one, but for its own CUDA runtime: this library has one of its own, linked in.
template <class Args>
void enter_device(const Args& args) {
  cudaSetDevice(args.device);
}

// All that the family and its shape follow, on the current device. Where the weights lie is not of it: only the
// workspace follows that, which every call asks for anew.
template <class Args>
struct Question {
  uint64_t device, kernels = 0;
  Sizes sizes;
  DType dtype;
  bool tf32, projected;

  Question(const Args& args, const DeviceFacts& facts)
      : device(facts.fingerprint()),
        sizes(args.sizes),
        dtype(args.dtype),
        tf32(args.tf32),
        projected(args.weight_hr[0] != nullptr) {
    if (const char* name = std::getenv("FASTLSTM_CUDA_KERNELS")) {
      for (kernels = 1; *name != 0; ++name) kernels = kernels * 1099511628211u + static_cast<unsigned char>(*name);
    }
  }
  bool operator==(const Question& other) const {
    const Sizes &s = sizes, &o = other.sizes;
    return device == other.device && kernels == other.kernels && dtype == other.dtype && tf32 == other.tf32 &&
           projected == other.projected && s.T == o.T && s.N == o.N && s.D == o.D && s.H == o.H && s.P == o.P;
  }
  size_t place(size_t places) const {
    uint64_t hash = device ^ kernels;
    for (const int64_t part :
         {sizes.T, sizes.N, sizes.D, sizes.H, sizes.P, static_cast<int64_t>(dtype), static_cast<int64_t>(projected)})
      hash = (hash ^ static_cast<uint64_t>(part)) * 1099511628211u;
    return (hash >> 32) % places;
  }
};

// The answers given last: asking every shape of every family takes the host as long as a short call's launches.
template <class Args>
class Answers {
 public:
  template <class Ask>
  Choice find(const Question<Args>& question, const Ask& ask) {
    std::optional<Answer>& place = places_[question.place(kPlaces)];
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (place && place->question == question) return place->choice;
    }
    const Answer answer{question, ask()};
    const std::lock_guard<std::mutex> lock(mutex_);
    place = answer;
    return answer.choice;
  }

 private:
  static constexpr size_t kPlaces = 256;
  struct Answer {
    Question<Args> question;
    Choice choice;
  };
  std::mutex mutex_;
  std::optional<Answer> places_[kPlaces];
};

template <class Args>
Choice choose_family(const Args& args, const DeviceFacts& device) {
  Choice best;
  with_policy(args, [&](auto chosen) {
    visit_families<typename decltype(chosen)::Policy>(args, [&](Family family, auto kernels) {
      const Wanted wanted(family);
      const bool last_resort = family == Family::kStep && !best.offer.possible();
      if (!wanted.family && !last_resort) return;
      const Offer offer = kernels.offer(args, device, wanted.shape);
      if (offer.beats(best.offer, args.sizes.T)) best = {family, offer};
    });
  });
  return best;
}

// The bytes that a call needs with a choice.
template <class Args>
size_t workspace_of(const Args& args, const Choice& choice) {
  size_t bytes = 0;
  with_family(args, choice.family, [&](auto kernels) { bytes = kernels.workspace(args, choice.offer.shape); });
  return bytes;
}

template <class Args>
Choice known_choice(const Args& args) {
  static auto* answers = new Answers<Args>;  // never destroyed: calls may come while the process ends
  enter_device(args);
  const DeviceFacts device;
  Choice choice = answers->find({args, device}, [&] { return choose_family(args, device); });
  choice.workspace = workspace_of(args, choice);
  return choice;
}

template <class Args>
Status run(const Args& args, const Choice& choice, void* workspace, void* stream) {
  enter_device(args);
  Launcher launch(args.sizes, stream);
  launch.needs_workspace(workspace_of(args, choice), choice.workspace);
  if (launch.failed()) return launch.status();
  with_family(args, choice.family, [&](auto kernels) { kernels.run(args, choice.offer.shape, workspace, launch); });
  return launch.status();
}

}  // namespace

Choice choose(const ForwardArgs& args) { return known_choice(args); }
Choice choose(const BackwardArgs& args) { return known_choice(args); }

Status forward(const ForwardArgs& args, const Choice& choice, void* workspace, void* stream) {
  return run(args, choice, workspace, stream);
}
Status backward(const BackwardArgs& args, const Choice& choice, void* workspace, void* stream) {
  return run(args, choice, workspace, stream);
}

}  // namespace fastlstm::cuda
