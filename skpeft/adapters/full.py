"""Full fine-tuning, behind the same contract as the adapters."""

from torch import nn

from skpeft.adapters.base import Adapter


class FullFineTuning(Adapter):
    """Train the encoder's own weights, on a private copy.

    It is here for comparison: the model on disk is as large as the encoder, and the
    private copy takes its memory once per fitted estimator. With `layers` of the
    estimator given, only those blocks are trained and copied.

    Examples
    --------
    >>> from skpeft.adapters import FullFineTuning
    >>> FullFineTuning()
    FullFineTuning()
    """

    default_learning_rate = 1e-4
    trains_encoder = True

    def target_roles(self) -> tuple[str, ...]:
        """No role: whole blocks are trained."""
        return ()

    def release(self, module: nn.Module) -> None:
        """Give `module` trainable copies of its parameters, in place.

        Parameters
        ----------
        module : torch.nn.Module
            A tree of the network's own, whose tensors are still shared.
        """
        copies: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                if id(parameter) not in copies:
                    copies[id(parameter)] = nn.Parameter(parameter.detach().clone())
                setattr(part, name, copies[id(parameter)])
