// Which target this processor runs. Probed once; nothing here is compiled for more than the
// baseline.

#include <string.h>

#include "op_table.h"

namespace ossia {
namespace {

#if defined(__x86_64__)
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}
#endif

}  // namespace

const OpTable* FindOps(const char* name) {
  const bool any = strcmp(name, "auto") == 0;
#if defined(__x86_64__)
  if ((any || strcmp(name, "avx512") == 0) && HasAvx512()) return Avx512Ops();
  if ((any || strcmp(name, "avx2") == 0) && HasAvx2()) return Avx2Ops();
#endif
  return any || strcmp(name, "scalar") == 0 ? ScalarOps() : nullptr;
}

}  // namespace ossia
