"""The categorical process: class indices that jump.

The state is an int64 tensor of indices, the estimate a tensor of logits of ``p(x0 | x_t)``, one per class on a last
axis. How a class decays is a `Kernel`; time enters through the survival ``alpha_t`` of a schedule, the probability
that the class is still the one of the data:

    RectifiedFlow: alpha_t = 1 - t, MDLM's "log-linear" and D3PM's 1/(T - t + 1);   Cosine(0): alpha_t = cos(pi t / 2).

Only ``alpha`` and ``d_alpha`` of the schedule are used. Here ``alpha_t`` is what papers on discrete diffusion call
alpha_t or alpha-bar_t; a Gaussian process squares it.
"""

from diffusion_core.process.categorical.chain import Rates, Steps
from diffusion_core.process.categorical.process import Categorical
from diffusion_core.process.categorical.redraw import Absorbing, Marginal, uniform
from diffusion_core.process.categorical.reverse import Reverse

__all__ = ["Absorbing", "Categorical", "Marginal", "Rates", "Reverse", "Steps", "uniform"]
