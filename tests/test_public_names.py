"""The public interface, written out: a name that is removed fails here, and at a release one that is missing here."""

import importlib
import inspect
import re
from pathlib import Path
from typing import get_origin

import click
import pytest

import captum_mfv
from captum_mfv.cli import app

NAMES = {
    "captum_mfv": """
        AtlasFolder Code Facet FacetFinder FacetSet ImageFolder InputSpec MFVError RunFolder TopImages Unit
        __version__ attr collect concept datasets errors figures find_facets images metrics models optvis report
        top_images
    """,
    "captum_mfv.units": "Code Unit channels_second first_floating_point is_channels_last",
    "captum_mfv.images": """
        ImageArchives ImageFolder Images InputSpec batches image_at open_images read_image stack to_pil
    """,
    "captum_mfv.models": "autocast_dtype load load_sae names",
    "captum_mfv.activations": """
        Collection LayerCall TopImages capture collect guard layer_name peak_patches top_images trace
    """,
    "captum_mfv.facets": "Facet FacetFinder FacetHead FacetSet cluster find_facets nearest stability",
    "captum_mfv.optvis.render": "Rendering render_facets",
    "captum_mfv.optvis.lucent": "render_vis_arguments",
    "captum_mfv.optvis.recipes": "Phase RECIPES Ramp Recipe get_recipe read_recipe",
    "captum_mfv.optvis.objectives": """
        FACET_WEIGHTS boundary code distribution facet gray measure_probe measure_reference probability probe
        total_variation unit weighted_sum
    """,
    "captum_mfv.optvis.initializer": """
        maco_image mean_image mean_images measured_colors measures_colors medoid_image medoid_images noise_image
        noise_images own_generator parameterize spectra spectral_images start_images
    """,
    "captum_mfv.optvis.param": """
        ParamF Transparency as_alpha check_images color_matrix fft_image_from maco_image_from mean_magnitudes
        pixel_image_from
    """,
    "captum_mfv.optvis.transform": """
        CenterCrop affine center_crop compose gradient_mask jitter make_transform noise random_crop
    """,
    "captum_mfv.optvis.optimizers": "DampedAdam TVAscent denoise_tv",
    "captum_mfv.optvis.terms": """
        ACTIVATION INPUT TERMS Tensors Term activation_term boundary_term check_term code_term gray_term
        make_term probability_term total_variation_term unit_term
    """,
    "captum_mfv.optvis.reference": """
        Probe Reference distribution_term measure_probe measure_reference measure_terms probe_term
    """,
    "captum_mfv.attr": """
        AttributionCode FacetAttribution FacetModel LayerFacetAttribution check_method explained facet_maps
        pure_code unit_forward
    """,
    "captum_mfv.concept": "CentroidClassifier ConceptScore concept_units facet_concepts random_concepts tcav_table",
    "captum_mfv.metrics": """
        CONTROLS Comparison Control Curve Estimate Evaluation EvaluationScores Faithfulness ImageScores Judge
        JudgeOutput LabeledOutput Multifacetedness Naturalness NullDistribution PatchSwap PathCheck TwoChoice clarity
        compare confusion deletion_curve diversity draw_control estimate estimate_ratio evaluate_images faithfulness
        halved holm insertion_curve judge_scores multifacetedness naturalness off_facet patch_swap path_check
        percentile polysemanticity predicts real_off_facet real_predicts redundancy retained same_over_seeds
        score_images shuffled spread two_choice
    """,
    "captum_mfv.labels": """
        APPEARANCE AppearanceNamer ClassifierNamer ConceptScores ImageTextNamer Label Namer REFERENCE_COLORS
        common_words concept_scores label_facets labels_from_scores read_words word_scores
    """,
    "captum_mfv.figures": "plot_attributions plot_embedding plot_facets plot_history",
    "captum_mfv.jobs": "RunSettings evaluate run",
    "captum_mfv.jobs.atlas": "AtlasSettings Estimate estimate run",
    "captum_mfv.runs.settings": "ATLAS AtlasOptions AtlasSettings RUN RunSettings",
    "captum_mfv.runs.folder": """
        BASELINE NEAREST PEAKS RunFolder array_path control_path find_outputs image_path overlay_path own
    """,
    "captum_mfv.runs.records": """
        ATLAS_FORMAT AtlasFacetRow AtlasUnitRow FORMAT FacetRow FinishedSettings Manifest Metrics Peaks Spec
        check_place installed_versions is_atlas new_manifest read_atlas_manifest read_manifest
    """,
    "captum_mfv.runs.atlas": """
        AtlasFolder AtlasUnit MEMBERS SHEET array_file image_file members_file record_file tensors_file
        unit_name
    """,
    "captum_mfv.bench": """
        Cell CellScores Compared HiddenUnit ImageClass Method Network Rendered Result ResultFolder Row SCORES SUITES
        Scene Scenes Suite Table find_method get_suite image_scores join make_table method_names real_scores run
    """,
    "captum_mfv.report": "Parts build compare read_parts",
    "captum_mfv.report.atlas": "build fill_page page_files",
    "captum_mfv.report.publication": "publish rebuild",
    "captum_mfv.datasets": """
        DIGITS_SPEC PLANTED_SPEC digit_classifier digits even_or_odd planted_codes planted_images planted_network
        ten_digits write_even_digits
    """,
    "captum_mfv.errors": """
        FacetError ImageError MFVError MFVWarning ModelError RecipeError RenderError RunError UnitError
    """,
}
"""Names in ``__all__`` of each module that the reference lists outside of its section on internals."""

COMMANDS = {
    "atlas": """
        --address --batch --channels --class-folders --classes --code --config --crop-fraction --device
        --dry-run --dtype --engine --facets --images --input-size --jobs --max-facets --merge --model --n-prefix
        --out --quiet --recipe --reduce --retry-failed --sae --seed --shard --size --steps --threads --top-k
        --units --update --verbose --weights --workers
    """,
    "bench": """
        METHODS --against --cells --controls --data --device --join --out --quiet --seeds --shard --steps --suite
        --table --threads --tuning --update --verbose
    """,
    "compare": "FOLDERS --out",
    "demo": "--out --quiet --verbose",
    "evaluate": """
        FOLDER --control --device --held-out --judge --judge-code --judge-input --judge-unit --judge-weights
        --model --quiet --sae --seed --weights
    """,
    "list controls": "",
    "list layers": "--model --unit",
    "list methods": "",
    "list models": "PATTERN",
    "list recipes": "NAME",
    "list schema": "NAME",
    "publish": "FOLDER OUT --license --max-size --no-photos --size --source --title",
    "report": "FOLDER",
    "run": """
        --attribution --channels --code --config --crop-fraction --device --dtype --facets --images --input-size
        --labels --model --n-prefix --out --quiet --recipe --reduce --sae --seed --size --steps --top-k --unit
        --update --verbose --weights
    """,
    "status": "FOLDER",
    "view": "FOLDER --no-browser --port",
}
"""Arguments and options of each command."""

ROOT = Path(captum_mfv.__file__).parents[1]
RELEASED = f"## {captum_mfv.__version__} (unreleased)" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
"""Whether this version is a release, whose new names must be listed."""


def test_the_public_modules_are_in_the_reference():
    public = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("## Internals")[0]
    listed = {"captum_mfv", *re.findall(r"^   (captum_mfv\S*)$", public, re.MULTILINE)}
    assert listed >= NAMES.keys()
    assert listed == NAMES.keys() or not RELEASED


@pytest.mark.parametrize("name", NAMES)
def test_the_public_names_of_a_module_are_there(name):
    module, listed = importlib.import_module(name), set(NAMES[name].split())
    assert listed - set(module.__all__) == set()
    assert [one for one in module.__all__ if not hasattr(module, one)] == []
    assert listed == set(module.__all__) or not RELEASED


@pytest.mark.parametrize("name", [name for name in NAMES if name != "captum_mfv"])
def test_every_public_class_and_function_has_a_docstring_of_its_own(name):
    module = importlib.import_module(name)
    values = {one: getattr(module, one) for one in module.__all__}
    aliases = {one for one, value in values.items() if get_origin(value) is not None}  # a class on Python 3.10
    documented = {
        one: value
        for one, value in values.items()
        if one not in aliases and (inspect.isclass(value) or inspect.isfunction(value))
    }
    generated = {one: f"{one}(" for one in documented}  # what `dataclass` writes
    assert [
        one for one, value in documented.items() if (value.__doc__ or generated[one]).startswith(generated[one])
    ] == []


def commands(group: click.Group, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            found |= commands(command, f"{name} ")
        else:
            options = [max(one.opts, key=len) for one in command.params if isinstance(one, click.Option)]
            arguments = [one.name.upper() for one in command.params if isinstance(one, click.Argument)]
            found[prefix + name] = " ".join([*arguments, *sorted(options)])
    return found


def test_the_commands_and_options_are_there():
    found = commands(app)
    assert found.keys() >= COMMANDS.keys()
    missing = {name: set(text.split()) - set(found[name].split()) for name, text in COMMANDS.items()}
    assert {name: words for name, words in missing.items() if words} == {}
    assert found == {name: " ".join(text.split()) for name, text in COMMANDS.items()} or not RELEASED
