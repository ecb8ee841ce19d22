"""The Helm chart `charts/yunhe`, from the same manifests: each chosen value becomes the expression that Helm fills in.
Pure; `python -m controlplane.operator.chart FOLDER` writes it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from controlplane.api.crds import custom_resource_definitions
from controlplane.operator.manifests import NAMESPACE, Install, Manifest, manifests

_RAW = re.compile(r"raw-(\w+)-raw")
"""Stands in YAML for what is no text: a number, a mapping, a list."""
_EXPRESSIONS = {
    "replicas": "{{ .Values.replicas }}",
    "resources": "{{ toJson .Values.resources }}",
    "nodeSelector": "{{ toJson .Values.nodeSelector }}",
    "tolerations": "{{ toJson .Values.tolerations }}",
}
_IN_TEMPLATES = Install(
    namespace="{{ $.Release.Namespace }}",
    engine_namespaces=("{{ . }}",),
    image="{{ .Values.image }}",
    replicas="raw-replicas-raw",
    resources="raw-resources-raw",
    node_selector="raw-nodeSelector-raw",
    tolerations="raw-tolerations-raw",
    failure_policy="{{ .Values.failurePolicy }}",
    webhook="{{ .Values.webhook }}",
)


class _Plain(yaml.SafeDumper):
    """Written out whole: no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_of(documents: list[Manifest]) -> str:
    """As `kubectl apply -f` reads them."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def values() -> dict[str, Any]:
    """The chart's values with their defaults."""
    install = Install()
    return {
        "image": install.image,
        "engineNamespaces": list(install.engine_namespaces),
        "replicas": install.replicas,
        "resources": install.resources,
        "nodeSelector": install.node_selector,
        "tolerations": install.tolerations,
        "failurePolicy": install.failure_policy,
        "webhook": install.webhook,
        "networkPolicy": install.network_policy,
        "priorityClasses": install.priority_classes,
    }


def values_schema() -> dict[str, Any]:
    """JSON Schema of the values, which Helm checks before it renders; draft 7 is what every Helm reads."""
    switches = {name: {"type": "boolean"} for name in ("webhook", "networkPolicy", "priorityClasses")}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "required": ["image", "replicas"],
        "properties": {
            "global": {"type": "object"},
            "image": {"type": "string", "minLength": 1},
            "engineNamespaces": {
                "type": "array",
                "uniqueItems": True,
                "items": {"type": "string", "maxLength": 63, "pattern": f"^{NAMESPACE}$"},
            },
            "replicas": {"type": "integer", "minimum": 1, "maximum": 5},
            "resources": {"type": "object"},
            "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
            "tolerations": {"type": "array", "items": {"type": "object"}},
            "failurePolicy": {"enum": ["Fail", "Ignore"]},
            **switches,
        },
    }


def chart_files() -> dict[str, str]:
    """Path in the chart → text, of everything that is generated; Chart.yaml and NOTES.txt are written by hand."""
    files = {
        "values.yaml": yaml_of([values()]),
        "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
    }
    for definition in custom_resource_definitions():
        files[f"crds/{definition['spec']['names']['plural']}.yaml"] = yaml_of([definition])
    for switch, manifest in manifests(_IN_TEMPLATES):
        text = _RAW.sub(lambda found: _EXPRESSIONS[found[1]], yaml_of([manifest]))
        if switch == "engineNamespaces":
            # One a namespace: each is a document of its own.
            text = f"{{{{- range .Values.{switch} }}}}\n---\n{text}{{{{- end }}}}\n"
        elif switch:
            text = f"{{{{- if .Values.{switch} }}}}\n{text}{{{{- end }}}}\n"
        name = str(manifest["kind"]).lower()
        path = f"templates/{name}.yaml"
        files[path] = f"{files[path]}---\n{text}" if path in files else text
    return files


def main(folder: str) -> None:
    """Write the generated files into the chart at `folder`."""
    for path, text in chart_files().items():
        target = Path(folder) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
