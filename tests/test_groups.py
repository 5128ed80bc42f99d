"""Which tests go to one worker, so that runs which many look at are done once."""

from __future__ import annotations

from pathlib import Path


def test_tests_of_a_file_and_of_a_strategy_in_the_largest_files_stay_together(pytestconfig):
    (shared,) = [one for one in pytestconfig.pluginmanager.get_plugins() if hasattr(one, "group_of")]
    assert shared.group_of("tests/cli/test_run.py::test_a[x-y]") == "tests/cli/test_run.py"
    contract = "tests/testing/test_contract.py"
    assert shared.group_of(f"{contract}::test_every_strategy_keeps_every_rule[gdumb-metadata_is_charged]") == (
        shared.group_of(f"{contract}::test_variants_keep_the_contract[gdumb-hyperparameters0]")
    )
    assert shared.group_of(f"{contract}::test_every_rule_has_a_cheat") == contract
    docs = "tests/docs/test_docs.py"
    assert shared.group_of(f"{docs}::test_commands_run[docs/record.md:4]") == f"{docs} docs/record.md"
    assert all((Path(pytestconfig.rootpath) / file).exists() for file in shared.PARTED)
