// Ends what begin.h began.

#if defined(FASTLSTM_TARGET)
#if defined(__clang__)
FASTLSTM_PRAGMA(clang attribute pop)
#else
FASTLSTM_PRAGMA(GCC pop_options)
#endif
#endif
