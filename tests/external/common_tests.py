"""transformers' own common tests (ConfigTester, ModelTesterMixin) on a model of this package.

    pip download --no-binary :all: --no-deps transformers==5.23.0 && tar xzf transformers-5.23.0.tar.gz
    pip install parameterized
    python tests/external/common_tests.py transformers-5.23.0 [words in names of tests]

The suite is that of the source distribution, whose version must be the installed one; nothing of it is kept here. What
remains red is listed in `EXPECTED`, with the assumption of the suite that a model of this package does not meet.
"""

from __future__ import annotations

import sys
import types
import unittest
from pathlib import Path

EXPECTED: dict[str, str] = {}
"""Tests that fail, and why that is the suite's assumption: none of 5.23.0. Of its 158 tests 57 skip themselves, most
for want of a device or a package; what the distribution leaves out (`LEFT_OUT`) is not run."""


LEFT_OUT = tuple(
    f"tests.{name}"
    for name in "utils utils.test_configuration_utils exporters exporters.test_export generation generation.test_utils "
    "distributed_testing_utils".split()
)
"""Modules that the suite imports and the distribution leaves out: of export, generation and several processes."""


class Absent(types.ModuleType):
    """A module with any name in it: an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def suite(root: Path) -> type[unittest.TestCase]:
    """The test case, of the suite that lies below `root`."""
    sys.path[0] = str(root)  # its folder is called tests, as ours
    (root / "tests" / "__init__.py").touch()  # which the suite looks for
    for name in LEFT_OUT:
        sys.modules[name] = Absent(name)
    sys.modules["tests.utils.test_configuration_utils"].config_common_kwargs = {}
    import torch
    from tests.test_configuration_common import ConfigTester
    from tests.test_modeling_common import ModelTesterMixin
    from transformers import BertConfig

    import udm_text

    class Tester:
        """Tiny models and rows, as the suite asks for them."""

        batch_size, seq_length, vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 3, 7, 60, 32, 2, 2
        is_training = True

        def __init__(self, parent):
            self.parent = parent

        def get_config(self):
            sizes = {name: getattr(self, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
            bert = BertConfig(**sizes, num_attention_heads=2, intermediate_size=37, max_position_embeddings=64)
            return udm_text.UDMConfig(text_config=bert, mask_token_id=1, pad_token_id=0)

        def prepare_config_and_inputs_for_common(self):
            draw = torch.Generator().manual_seed(0)
            ids = torch.randint(5, self.vocab_size, (self.batch_size, self.seq_length), generator=draw)
            return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    class CommonTest(ModelTesterMixin, unittest.TestCase):
        all_model_classes = (udm_text.UDMForMaskedGeneration,)
        all_generative_model_classes = ()  # generate is by diffusion, and no test of the autoregressive one is of it
        test_resize_embeddings = True
        model_tester_class = Tester

        def setUp(self):
            self.model_tester = Tester(self)
            own = {"mask_token_id": 4, "common_properties": ["mask_token_id", "pad_token_id"]}
            self.config_tester = ConfigTester(self, config_class=udm_text.UDMConfig, has_text_modality=False, **own)

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
            return inputs | {"labels": inputs["input_ids"]} if return_labels else inputs

        def test_config(self):
            self.config_tester.run_common_tests()

    return CommonTest


if __name__ == "__main__":
    case = suite(Path(sys.argv.pop(1)).resolve())
    names = unittest.TestLoader().getTestCaseNames(case)
    wanted = [name for name in names if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(map(case, wanted)))
    red = {test.id().rsplit(".", 1)[-1] for test, _ in (*result.failures, *result.errors)}
    print("unexpected:", sorted(red - EXPECTED.keys()), "mended:", sorted((set(wanted) & EXPECTED.keys()) - red))
    sys.exit(bool(red - EXPECTED.keys()))
