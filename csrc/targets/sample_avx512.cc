// `sample` compiled for this target. As in avx512.cc, no standard C++ header may be included here.
#include "simd/avx512.h"
//
#include "ops/sample-inl.h"

namespace ossia {

const SampleOps* Avx512Sample() {
  static constexpr SampleOps kOps = {"avx512", avx512::SampleWorkspaceBytes, avx512::SampleRow};
  return &kOps;
}

}  // namespace ossia
