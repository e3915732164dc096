// One target's table. Included last by targets/*.cc.

#include "op_table.h"

namespace ossia::OSSIA_TARGET {

inline const OpTable kTable = {
    .name = OSSIA_TARGET_NAME,
    .q8_bias = kQ8Bias,
    .rms_norm = RmsNorm,
    .quantise = Quantise,
    .begin_row = BeginRow,
    .quantise_block = QuantiseBlock,
    .pack_panel = PackPanel,
    .matmul = Matmul,
    .rotate = Rotate,
    .add = AddRows,
    .add_scaled = AddScaled,
    .swiglu = Swiglu,
    .bf16_to_f32 = Bf16ToF32,
    .softmax = Softmax,
    .store_key = StoreKey,
    .store_value = StoreValue,
    .attention = Attention,
    .attention_merge = AttentionMerge,
    .read_bytes = ReadBytes,
    .dot_peak = DotPeak,
};

}  // namespace ossia::OSSIA_TARGET
