// Ends the target region that avx2.h or avx512.h began: what follows is compiled for the oldest machine again.
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
