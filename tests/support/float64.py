"""Models in float64 throughout, so that sums in another order agree to 1e-10: transformers' normalisation computes in float32."""

from torch import Tensor, nn
from transformers import PreTrainedModel


class WideNorm(nn.Module):
    """RMSNorm in the precision of its inputs."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.variance_epsilon)


def float64(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.__class__ = WideNorm
    return model.double()
