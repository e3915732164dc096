"""The kernels in PyTorch: differentiable for training, and inference on devices without kernels of
their own. Importing this imports torch.
"""

from ossia.kernels.torch.experts import Routing
from ossia.kernels.torch.kernels import TorchKernels
from ossia.kernels.torch.loss import CrossEntropy

__all__ = ["CrossEntropy", "Routing", "TorchKernels"]
