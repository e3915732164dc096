// `sample` compiled for this target. As in scalar.cc, no standard C++ header may be included here.
#include "simd/scalar.h"
//
#include "ops/sample-inl.h"

namespace ossia {

const SampleOps* ScalarSample() {
  static constexpr SampleOps kOps = {"scalar", scalar::SampleWorkspaceBytes, scalar::SampleRow};
  return &kOps;
}

}  // namespace ossia
