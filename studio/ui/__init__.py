"""The browser side: a Gradio page, read-only REST, and an ASGI shell around both. Never imports torch."""

import os

# Before gradio is imported anywhere: no look-ups outside this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
