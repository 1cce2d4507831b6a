"""Reusable pieces of page. The moving ones are ``gr.HTML`` with a static template; text is set by script as text."""
