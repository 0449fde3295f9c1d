"""What can be known of the vLLM engine without vLLM: settings, versions, and what is said where it is missing."""

import re
import sys
from types import SimpleNamespace

import pytest

from sdar.errors import ConfigError
from sdar.samplers import VLLMSampler
from sdar.serving import VLLMEngine
from sdar.serving.vllm_engine import check_version, import_vllm


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cu130", "0.32.2.dev3"])
def test_versions_that_it_was_written_for(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "dev"])
def test_other_versions_are_refused_with_what_to_do(version):
    with pytest.raises(
        ConfigError, match=re.escape(f"vLLM {version} is installed, this version of sdar works with 0.32 to before")
    ):
        check_version(version)


def test_a_missing_or_wrong_vllm_is_told_before_anything_is_loaded(monkeypatch, tiny_policy_dir):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ConfigError, match=r"needs the package vllm \(0.32 to before 0.33\), .*`sdar serve-policy` in an environment"
    ):
        import_vllm()
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.19.1"))
    with pytest.raises(ConfigError, match=r"vLLM 0\.19\.1 is installed"):
        VLLMEngine(str(tiny_policy_dir)).open()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ConfigError, match="the environment sets VLLM_USE_V2_MODEL_RUNNER=1, sampling needs 0: unset it"):
        import_vllm()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"context": 1}, "engine.context is 1"),
        ({"memory": 1.5}, "engine.memory is 1.5: it is a share"),
        ({"options": {"dtype": "float16", "max_num_seqs": 4}}, "engine.options holds dtype, which the engine sets itself"),
        (
            {"options": {"tensor_parallel_size": 2}},
            "engine.options.tensor_parallel_size is 2: an engine takes one accelerator",
        ),
        ({"options": {"speculative_config": {"method": "ngram"}}}, "vLLM allows no logits processor with it"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        VLLMEngine("model", **settings)
    if "context" not in settings:
        with pytest.raises(ConfigError, match=re.escape(words)):
            VLLMSampler(**settings)


def test_a_policy_without_a_directory_is_told(tmp_path):
    class Fresh:
        added_tokens_decoder, all_special_ids, name_or_path = {}, [], ""

        def __len__(self):
            return 10

    for place in ("", str(tmp_path)):
        Fresh.name_or_path = place
        with pytest.raises(
            ConfigError, match=r"sampler.model is not set, and the policy's tokenizer comes from no model directory"
        ):
            VLLMSampler().bind(Fresh(), [1], 512)


def test_a_sampler_that_was_never_used_has_nothing_to_close_or_tell():
    sampler = VLLMSampler()
    sampler.release()
    assert sampler.metrics() == {}
    sampler.close()
