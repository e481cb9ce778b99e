"""The sample store in Prometheus' text format, beside edged.status.metrics."""

from __future__ import annotations

from edged.samples.records import SampleStats

_COUNTERS = {
    "kept": "Pictures that were kept.",
    "repeated": "Pictures whose bytes were here already.",
    "evicted": "Samples given up for lack of room.",
    "expired": "Samples that were older than their service's retention.",
    "removed": "Samples that people removed.",
    "refused": "Pictures for which there was no room.",
}


def render(stats: SampleStats) -> str:
    """Metrics of all samples together."""
    gauges = {
        "edged_samples_items": ("Samples kept for learning.", stats.items),
        "edged_samples_bytes": ("Their size on disk.", stats.bytes),
        "edged_samples_labelled": ("Samples with a label that counts.", sum(stats.labelled.values())),
        "edged_samples_near_duplicates": ("Samples that look like an earlier one.", stats.near),
        "edged_samples_unreadable": ("Samples that do not open.", stats.damaged + stats.other_key),
    }
    lines = []
    for name, (help_text, number) in gauges.items():
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {number}"]
    for counter, help_text in _COUNTERS.items():
        name = f"edged_samples_{counter}_total"
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter", f"{name} {stats.counters.get(counter, 0)}"]
    return "\n".join(lines) + "\n"
