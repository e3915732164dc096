// `sample` compiled for this target. As in avx2.cc, no standard C++ header may be included here.
#include "simd/avx2.h"
//
#include "ops/sample-inl.h"

namespace ossia {

const SampleOps* Avx2Sample() {
  static constexpr SampleOps kOps = {"avx2", avx2::SampleWorkspaceBytes, avx2::SampleRow};
  return &kOps;
}

}  // namespace ossia
