#include "dispatch.h"

namespace gdn {

extern const Kernels kernels_portable;
#if defined(GDN_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
#endif

namespace {

// What the compiler may have used in a path's file: CMakeLists.txt says the same in its flags.
bool can_run(int64_t path) {
#if defined(GDN_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    if (path == GDN_PATH_AVX2) return avx2;
    if (path == GDN_PATH_AVX512) return avx512;
    if (path == GDN_PATH_AVX512_BF16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return path == GDN_PATH_PORTABLE;
}

const Kernels *compiled(int64_t path) {
    switch (path) {
#if defined(GDN_X86)
        case GDN_PATH_AVX512_BF16: return &kernels_avx512_bf16;
        case GDN_PATH_AVX512: return &kernels_avx512;
        case GDN_PATH_AVX2: return &kernels_avx2;
#endif
        case GDN_PATH_PORTABLE: return &kernels_portable;
        default: return nullptr;
    }
}

int64_t find_best() {
    int64_t path = GDN_PATH_AVX512_BF16;
    while (!compiled(path) || !can_run(path)) --path;
    return path;
}

}  // namespace

int64_t best_path() {
    static const int64_t best = find_best();
    return best;
}

const Kernels *kernels_for(int64_t path) {
    if (path == GDN_PATH_BEST) path = best_path();
    return compiled(path) && can_run(path) ? compiled(path) : nullptr;
}

}  // namespace gdn
