import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from captum_mfv.errors import RecipeError
from captum_mfv.optvis.objectives import FACET_WEIGHTS
from captum_mfv.optvis.recipes import RECIPES, Phase, Ramp, Recipe, get_recipe, read_recipe
from captum_mfv.storage.schema import json_schema


def test_recipes_are_data_with_adjustable_steps():
    paper = get_recipe("paper-mean")
    assert [phase.steps for phase in paper.phases] == [190, 150, 20, 10]
    assert [phase.steps for phase in paper.with_steps(37).phases] == [19, 15, 2, 1]
    assert [phase.steps for phase in paper.with_steps(4).phases] == [1, 1, 1, 1]
    for wrong in (0, 3, -5):
        with pytest.raises(RecipeError, match="at least that"):
            paper.with_steps(wrong)
    with pytest.raises(RecipeError, match="did you mean paper-mean"):
        get_recipe("paper-meen")


@pytest.mark.parametrize(
    ("start", "end", "n_steps", "first", "last"),
    [(0.4, 0.4, 190, 0.398, 0.796), (0.01, 2, 150, 0.0099, 2.0), (0.1, 2, 20, 0.095, 2.0), (0.4, 2, 10, 0.36, 2.16)],
)
def test_the_papers_tv_schedule_equals_that_of_its_code(start, end, n_steps, first, last):
    ramp = Ramp(start, end, released=True)
    assert ramp.at(0, n_steps) == pytest.approx(first, abs=1e-3)
    assert ramp.at(n_steps - 1, n_steps) == pytest.approx(last, abs=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_from_its_json_unchanged(name, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(get_recipe(name).to_json())
    assert read_recipe(path) == get_recipe(str(path)) == get_recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(asdict(get_recipe(name))))) == get_recipe(name)


def changed(**changes):
    data = json.loads(get_recipe("facet").to_json())
    for where, value in changes.items():
        table, _, name = where.rpartition("__")
        (data["phases"][0] if table else data)[name] = value
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "middle"}, "recipe: start must be 'mean', 'medoid', 'noise' or 'spectrum', not 'middle'$"),
        ({"param": "fft2"}, "param must be 'fft', 'pixel' or 'maco', not 'fft2'; did you mean fft"),
        ({"colors": "mine"}, "colors must be 'imagenet' or 'images', not 'mine'"),
        ({"name": None}, "name must be text, not None"),
        ({"phases": []}, "phases must be of length 1 or more"),
        ({"phases": [3]}, r"phases\[0\] must be a table, not 3"),
        ({"noise": [1]}, "noise lacks item 1"),
        ({"color": "red"}, "color isn't known; did you mean colors"),
        ({"phase__step": 3}, r"phases\[0\].step isn't known; did you mean steps"),
        (
            {"phase__weights": {"style": 1}},
            r"phases\[0\].weights.style: no objective 'style'; there are unit, capped_unit",
        ),
        ({"phase__weights": {}}, r"phases\[0\].weights must be of length 1 or more"),
        ({"phase__weights": {"unit": "heavy"}}, r"phases\[0\].weights.unit must be a finite number, not 'heavy'"),
        ({"phase__weights": {"unit": True}}, r"phases\[0\].weights.unit must be a finite number, not True"),
        ({"phase__steps": 0}, r"phases\[0\].steps must be at least 1, not 0"),
        ({"phase__steps": "many"}, r"phases\[0\].steps must be an integer, not 'many'"),
        ({"phase__optimizer": "sgd"}, r"phases\[0\].optimizer must be 'adam', 'damped_adam' or 'tv', not 'sgd'"),
        ({"phase__optimizer": "tv"}, "steps on pixels; set param to pixel"),
        ({"phase__lr": {"start": -1, "end": 0}}, r"phases\[0\]: lr must be at least 0, not -1 to 0"),
        ({"phase__lr": 0.1}, r"phases\[0\].lr must be a table, not 0.1"),
        ({"phase__scale": 0}, r"phases\[0\].scale must be greater than 0, not 0"),
        ({"phase__transforms": {"blur": {}}}, r"phases\[0\]: no transform 'blur'"),
        ({"phase__transforms": {"affine": {"scale": 2}}}, "scale must be at least 0 and below 1"),
        (
            {"phase__transforms": {"affine": {"degrees": "x"}}},
            r"transforms.affine.degrees must be a finite number, not 'x'",
        ),
    ],
)
def test_invalid_recipes_are_an_error_that_names_the_field(changes, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(changed(**changes))


def test_files_without_a_recipe_are_an_error(tmp_path):
    for content in (b"", b"[1]", b"\xff\xfe", b"nul", b"{}"):
        path = tmp_path / "recipe.json"
        path.write_bytes(content)
        with pytest.raises(RecipeError):
            read_recipe(path)
    with pytest.raises(RecipeError, match="can't be read"):
        get_recipe(str(tmp_path / "nothing.json"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phase(0, {"unit": 1.0}), "^steps must be at least 1, not 0$"),
        (lambda: Phase(40, {"distributoin": 6.0}), "no objective 'distributoin'.*did you mean distribution"),
        (lambda: Ramp(1, float("nan")), "^end must be a finite number, not nan$"),
        (lambda: replace(get_recipe("facet"), start="nose"), "^start must be .*, not 'nose'; did you mean noise"),
        (lambda: get_recipe("facet").with_steps(10**9), "steps must be at most 1000000, not 1000000000"),
    ],
)
def test_constructors_raise_recipe_errors_that_name_the_field(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_an_error_names_the_file_and_the_field(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(changed(phase__weights={"unit": "x"})))
    with pytest.raises(RecipeError, match=r"^recipe .*mine\.json: phases\[0\]\.weights\.unit must be a finite number"):
        read_recipe(tmp_path / "mine.json")


def test_numpy_numbers_are_plain_numbers_in_a_recipe():
    phase = Phase(np.int64(3), {"unit": np.float32(0.5)})
    assert json.dumps(asdict(phase)) == json.dumps(asdict(Phase(3, {"unit": 0.5})))


def test_the_built_in_recipes_have_the_exact_values_of_the_paper_and_of_objectives():
    mean, biased = RECIPES["paper-mean"], RECIPES["paper-center-biased"]
    assert mean.phases[2].transforms == {"center_crop": {"window": 0.2}, "gradient_mask": {"margin": 50 / 227}}
    assert biased.noise == (175 / 255, 8 / 255)
    assert [phase.scale for phase in biased.phases] == [1.0, 1.2, 1.44, 1.44, 1.44]
    assert RECIPES["facet"].phases[0].weights == FACET_WEIGHTS
    assert RECIPES["facet-from-noise"].phases[0].weights == {**FACET_WEIGHTS, "capped_unit": 0.5}
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}


def test_the_schema_of_recipes_lists_fields_and_names():
    schema = json_schema(Recipe)
    assert set(schema["properties"]) == {field.name for field in fields(Recipe)}
    assert schema["properties"]["start"]["enum"] == ["mean", "medoid", "noise", "spectrum"]
    assert schema["additionalProperties"] is False


def test_a_custom_recipe_is_used_unchanged():
    mine = Recipe("mine", "", "medoid", "fft", (Phase(3, {"unit": 1.0, "total_variation": 0.1}),))
    assert get_recipe(mine) is mine
