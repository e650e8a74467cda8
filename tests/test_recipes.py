import json
from dataclasses import asdict

import pytest

from captum_mfv.errors import RecipeError
from captum_mfv.optvis.recipes import RECIPES, Phase, Ramp, Recipe, get_recipe, read_recipe


def test_recipes_are_data_with_steps_to_choose():
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
def test_the_papers_tv_schedule_runs_as_its_code_ran(start, end, n_steps, first, last):
    ramp = Ramp(start, end, released=True)
    assert ramp.at(0, n_steps) == pytest.approx(first, abs=1e-3)
    assert ramp.at(n_steps - 1, n_steps) == pytest.approx(last, abs=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_its_json(name, tmp_path):
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
        ({"start": "middle"}, "no start 'middle'; there are mean, medoid, noise, spectrum"),
        ({"param": "fft2"}, "no param 'fft2'; .* did you mean fft"),
        ({"colors": "mine"}, "no colors 'mine'"),
        ({"phases": []}, "recipe facet has no phase"),
        ({"phases": [3]}, "this isn't a recipe"),
        ({"noise": [1]}, "this isn't a recipe"),
        ({"color": "red"}, "no setting of a recipe 'color'; .* did you mean colors"),
        ({"phase__weights": {"style": 1}}, "no objective 'style'; there are unit, capped_unit, probability, code"),
        ({"phase__weights": {}}, "at least one objective"),
        ({"phase__weights": {"unit": "heavy"}}, "this isn't a recipe: ValueError"),
        ({"phase__steps": 0}, "steps must be an integer of at least 1, not 0"),
        ({"phase__steps": "many"}, "steps must be an integer of at least 1, not 'many'"),
        ({"phase__optimizer": "sgd"}, "no optimizer 'sgd'; there are adam, tv"),
        ({"phase__optimizer": "tv"}, "steps on pixels; set param to pixel"),
        ({"phase__lr": {"start": -1, "end": 0}}, "lr must be at least 0, not -1 to 0"),
        ({"phase__lr": 0.1}, "this isn't a recipe"),
        ({"phase__scale": 0}, "scale must be above 0"),
        ({"phase__transforms": {"blur": {}}}, "no transform 'blur'"),
        ({"phase__transforms": {"affine": {"scale": 2}}}, "scale must be at least 0 and below 1"),
        ({"phase__transforms": {"affine": {"degrees": "x"}}}, "this isn't a recipe|transform affine"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(changes, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(changed(**changes))


def test_files_that_hold_no_recipe_are_refused(tmp_path):
    for content in (b"", b"[1]", b"\xff\xfe", b"nul", b"{}"):
        path = tmp_path / "recipe.json"
        path.write_bytes(content)
        with pytest.raises(RecipeError):
            read_recipe(path)
    with pytest.raises(RecipeError, match="can't be read"):
        get_recipe(str(tmp_path / "nothing.json"))


def test_a_recipe_of_ones_own_is_taken_as_it_is():
    mine = Recipe("mine", "", "medoid", "fft", (Phase(3, {"unit": 1.0, "total_variation": 0.1}),))
    assert get_recipe(mine) is mine
