// The ops compiled for this target. No standard C++ header may be included here: an inline function
// of it, compiled with this target's instructions, could be the copy that the linker keeps for all.
#include "simd/avx2.h"
//
#include "ops/elementwise-inl.h"
#include "ops/matmul-inl.h"
//
#include "ops/attention-inl.h"

#define OSSIA_TARGET_NAME "avx2"
#include "targets/table-inl.h"

namespace ossia {
const OpTable* Avx2Ops() { return &avx2::kTable; }
}  // namespace ossia
