"""A recipe for Lucent's own render loop."""

from __future__ import annotations

from itertools import count
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from captum_mfv.errors import RecipeError
from captum_mfv.images import Images, InputSpec
from captum_mfv.optvis.arguments import Facets, as_facets, check_same_layers
from captum_mfv.optvis.initializer import measured_colors, own_generator, parameterize, start_images
from captum_mfv.optvis.objectives import weighted_sum
from captum_mfv.optvis.recipes import Recipe, get_recipe
from captum_mfv.optvis.reference import measure_terms
from captum_mfv.optvis.step import make_optimizer, make_transforms, schedule
from captum_mfv.storage.schema import check_integer
from captum_mfv.units import first_floating_point

__all__ = ["render_vis_arguments"]


def render_vis_arguments(
    model: nn.Module,
    facets: Facets,
    images: Images,
    *,
    recipe: str | Recipe = "facet",
    steps: SupportsIndex | None = None,
    input_spec: InputSpec | None = None,
    seed: SupportsIndex = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Return a recipe as keyword arguments of Lucent's ``render_vis``, which then renders what `render_facets` does.

    Arguments may be replaced: ``{**arguments, "thresholds": [20, 100]}``. Each call of ``render_vis`` starts anew. The
    model must be in evaluation mode; Lucent leaves its hooks on it.

    Args:
        model: the model in which the facets were found.
        facets: a facet set, a facet or several; the batch has one image for each.
        images: the dataset in which they were found.
        recipe: name of a recipe, path of a recipe's ``.json``, or a `Recipe`; of one phase, since Lucent's loop has
            one.
        steps: number of steps; by default the recipe's.
        input_spec: what turns images in [0, 1] into the model's input.
        seed: seed of transforms and noise.
        progress: show progress bars of measurements and of the rendering.

    Raises:
        RecipeError: if the recipe isn't known, has several phases, or enlarges the canvas.
        FacetError: if the facets read different layers.

    Example:
        ``render_vis(model, **render_vis_arguments(model, facets, images, input_spec=spec))``
    """
    chosen, spec, seed = as_facets(facets), input_spec or InputSpec(), check_integer(seed, "seed")
    check_same_layers(chosen)
    plan = get_recipe(recipe) if steps is None else get_recipe(recipe).with_steps(check_integer(steps, "steps"))
    if len(plan.phases) > 1 or plan.phases[0].scale != 1:
        raise RecipeError(f"recipe {plan.name} has several phases or sizes; only render_facets renders it")
    (phase,) = plan.phases
    generators = [own_generator(seed, item) for item in chosen]
    start = start_images(plan, chosen, images, generators, (spec.channels, spec.size, spec.size))
    weight = first_floating_point(model)
    start = start if weight is None else start.to(weight.device)
    states = [generator.get_state() for generator in generators]
    transforms = make_transforms(phase, spec.size, generators)
    terms = measure_terms(phase.weights, model, chosen, images, spec, progress)

    def optimizer(params: list[Tensor]) -> torch.optim.Optimizer:
        """Begin anew: Lucent calls this once, before the first step."""
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        made, steps = make_optimizer(phase, params, transforms), count()
        made.register_step_pre_hook(lambda *_: schedule(made, phase, next(steps)))
        return made

    return {
        "objective_f": len(chosen) * weighted_sum(chosen, terms, phase.weights),  # a sum over images, as in our loop
        "param_f": parameterize(plan, start, chosen, images, measured_colors(plan, images, spec)),
        "optimizer": optimizer,
        "transforms": [*transforms, spec.feed(model)],
        "thresholds": (phase.steps,),
        "preprocess": False,  # the last transform does it
        "fixed_image_size": spec.size,  # Lucent enlarges smaller images otherwise
        "show_image": False,
        "progress": progress,
    }
