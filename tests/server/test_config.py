# ruff: noqa: S104  (nothing is bound here)
"""Settings: flag over environment over default, and nothing that is not understood."""

import re
from pathlib import Path

import pytest

from server.config import ConfigError, ServerConfig


def test_a_flag_goes_before_the_environment_and_that_before_the_default() -> None:
    environment = {"ATLAS_PORT": "1", "ATLAS_HOST": "::1", "ATLAS_STORE_OPTIONAL": "yes", "PATH": "/bin"}
    config = ServerConfig.build(["--port", "2", "--max-num-sequences", "3"], environment)
    assert (config.port, config.host, config.max_num_sequences) == (2, "::1", 3)
    assert config.store_optional is True
    assert config.lease_seconds == 10.0
    assert ServerConfig.build(["--no-store-optional"], environment).store_optional is False


def test_every_setting_is_a_flag_and_a_variable() -> None:
    given = {
        "model": "/m", "store": "memory://", "data_dir": "/d", "device": "cuda", "threads": "1",
        "drain_seconds": "1.5", "api_keys": "k", "log_level": "error", "ingest_commit_tokens": "9",
    }  # fmt: skip
    by_flag = ServerConfig.build([word for n, v in given.items() for word in (f"--{n.replace('_', '-')}", v)], {})
    by_variable = ServerConfig.build([], {f"ATLAS_{name.upper()}": value for name, value in given.items()})
    assert by_flag == by_variable
    assert by_flag.model == Path("/m")
    assert by_flag.threads == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ([], {"ATLAS_PROT": "1"}, "ATLAS_PROT"),
        ([], {"ATLAS_PORT": "http"}, "ATLAS_PORT"),
        ([], {"ATLAS_PORT": ""}, "ATLAS_PORT"),
        ([], {"ATLAS_STORE_OPTIONAL": "perhaps"}, "ATLAS_STORE_OPTIONAL"),
        ([], {"ATLAS_API_KEYS": "bad tenant:key"}, "ATLAS_API_KEYS"),
        (["--port", "x"], {}, "--port"),
        (["--port", "70000"], {}, "--port"),
        (["--prot", "1"], {}, "--prot"),
        (["--por", "1"], {}, "--por"),
        (["--lease-seconds", "0"], {}, "--lease-seconds"),
        (["--kept-versions", "-1"], {}, "--kept-versions"),
        (["--kept-versions", "65"], {}, "--kept-versions"),
        (["--snapshot-codec", "zip"], {}, "--snapshot-codec"),
        (["--log-level", "loud"], {}, "--log-level"),
        (["--matmul-dtype", "float16"], {}, "--matmul-dtype"),
        (["--native-kernels", "on"], {}, "--native-kernels"),
        (["--threads", "0"], {}, "--threads"),
        (["--threads", "100000"], {}, "--threads"),
        (["--step-timeout-seconds", "0.001"], {}, "--step-timeout-seconds"),
        (["--device", "tpu"], {}, "--device"),
        (["--max-num-sequences", "0"], {}, "--max-num-sequences"),
        (["--max-num-batched-tokens", "0"], {}, "--max-num-batched-tokens"),
        (["--max-num-waiting", "-1"], {}, "--max-num-waiting"),
        (["--memory-sample-tokens", "-1"], {}, "--memory-sample-tokens"),
        (["--host-cache-bytes", "-1"], {}, "--host-cache-bytes"),
        (["--host", "0.0.0.0"], {}, "ATLAS_API_KEYS"),
        (["--host", "192.0.2.1"], {}, "--allow-insecure"),
        (["--host", "example.org"], {}, "--allow-insecure"),
        (["--host", "::"], {}, "--allow-insecure"),
        (["--host", ""], {}, "--allow-insecure"),
        (["--host", "::ffff:0.0.0.0"], {}, "--allow-insecure"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(arguments: list[str], environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServerConfig.build(arguments, environment)


def test_beyond_loopback_there_must_be_keys_or_a_word_that_there_need_not() -> None:
    assert ServerConfig.build(["--host", "0.0.0.0"], {"ATLAS_API_KEYS": "k"}).host == "0.0.0.0"
    assert ServerConfig.build(["--host", "::", "--api-keys-file", "/keys"], {}).host == "::"
    assert ServerConfig.build(["--host", "0.0.0.0"], {"ATLAS_ALLOW_INSECURE": "1"}).host == "0.0.0.0"
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServerConfig.build(["--host", host], {}).host == host


def test_what_the_client_and_the_tests_set_in_the_same_shell_is_not_refused() -> None:
    ServerConfig.build([], {"ATLAS_API_KEY": "k", "ATLAS_BASE_URL": "http://x", "ATLAS_FAILPOINTS": ""})


def test_the_default_store_lies_below_the_data_directory() -> None:
    assert ServerConfig.build(["--data-dir", "/var/lib/atlas"], {}).store_url == "local:///var/lib/atlas/sessions"
    assert ServerConfig.build([], {}).store_url.startswith("local:///")
    assert ServerConfig.build(["--store", "memory://"], {}).store_url == "memory://"


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ServerConfig.build(["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in ServerConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_the_readme_has_every_setting_and_no_other() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    rows = re.findall(
        r"^\| `--([a-z0-9-]+)` \| `(ATLAS_[A-Z0-9_]+)` \|", readme.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [flag.replace("-", "_") for flag, _ in rows] == list(ServerConfig.__dataclass_fields__)
    assert [variable.removeprefix("ATLAS_").lower() for _, variable in rows] == list(ServerConfig.__dataclass_fields__)
