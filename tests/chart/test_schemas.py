"""Objects match the strict schemas of Kubernetes, custom resources match their own schemas."""

import functools
import json

import kubernetes_validate
import pytest

from documents import MANIFESTS
from rendering import CHART, HERE, NAMES, VALUES, VERSIONS, helm, load, name_of, rendered
from support import TARGET, output

# Without a cache, each validation would read megabytes.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)


def is_custom(found):
    group = found["apiVersion"].rpartition("/")[0]
    return group == "gateway.networking.k8s.io" or ("." in group and not group.endswith(".k8s.io"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_objects_are_valid_in_all_supported_versions_of_kubernetes(name, version):
    for found in rendered(name, version):
        if not is_custom(found):
            kubernetes_validate.validate(found, version, strict=True)


def test_custom_resources_match_their_schemas_and_types(tmp_path):
    entries = {}
    for name in NAMES:
        for version in VERSIONS:
            for found in filter(is_custom, rendered(name, version)):
                where = f"{name}, Kubernetes {version}: {name_of(found)}"
                entries[repr(found)] = {"where": where, "object": found}
    assert entries
    file = tmp_path / "custom-resources.json"
    file.write_text(json.dumps(list(entries.values())))
    problems = output("node", HERE / "custom_resources.mjs", TARGET / "chart", file)
    assert not problems, problems


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_plain_manifest_is_valid_and_free_of_helm(manifest, version):
    for found in load(manifest.read_text()):
        assert "helm" not in str(found).lower()
        kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("values", VALUES)
def test_helm_lints_the_chart(values):
    helm("lint", "--strict", CHART, "--values", VALUES[values])


def test_refuses_a_version_of_kubernetes_that_is_too_old():
    oldest = int(VERSIONS[0].split(".")[1])
    with pytest.raises(AssertionError, match="incompatible with Kubernetes"):
        helm(
            "template",
            "x",
            CHART,
            "--values",
            VALUES["default"],
            "--kube-version",
            f"1.{oldest - 1}.0",
        )
