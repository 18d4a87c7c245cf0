"""docs/metrics.md is the schema, word for word."""

from pathlib import Path

from prune2deploy.report.documentation import RECORDS, documentation

ROOT = Path(__file__).parents[2]


def test_the_documentation_is_made_from_the_schema():
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == documentation(), "run: python -m prune2deploy.report.documentation"


def test_every_key_is_described():
    for record in RECORDS:
        assert all(field.description for field in record.model_fields.values()), record
    assert "| `schema_version` |" in documentation()
