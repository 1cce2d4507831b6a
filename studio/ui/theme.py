"""The look of Gradio's own parts: ember on warm paper, ember on graphite. All else is in studio.css."""

import gradio as gr
from gradio.themes.utils import sizes
from gradio.themes.utils.colors import Color
from gradio.themes.utils.fonts import LocalFont

EMBER = Color(
    name="ember",
    c50="#fff6ee",
    c100="#ffe9d6",
    c200="#ffd0a8",
    c300="#ffb077",
    c400="#fb8c47",
    c500="#ee6a1f",
    c600="#c2480d",
    c700="#a13a0c",
    c800="#812f11",
    c900="#682911",
    c950="#391206",
)
PAPER = Color(
    name="paper",
    c50="#faf7f2",
    c100="#f3eee6",
    c200="#e7dfd3",
    c300="#d5cabb",
    c400="#a89d90",
    c500="#7d7368",
    c600="#645b52",
    c700="#4a433c",
    c800="#302b27",
    c900="#211e1b",
    c950="#151312",
)
# Each value with its dark twin.
COLOURS = {
    "body_background_fill": ("*neutral_50", "#141211"),
    "body_text_color": ("*neutral_900", "#f2ece5"),
    "body_text_color_subdued": ("*neutral_600", "#b3a89c"),
    "background_fill_primary": ("#fffdfa", "#1d1a18"),
    "background_fill_secondary": ("*neutral_50", "#181614"),
    "block_background_fill": ("#fffdfa", "#1d1a18"),
    "block_border_color": ("*neutral_200", "#35302b"),
    "block_label_background_fill": ("#fffdfa", "#1d1a18"),
    "block_label_text_color": ("*neutral_600", "#b3a89c"),
    "block_title_text_color": ("*neutral_900", "#f2ece5"),
    "block_info_text_color": ("*neutral_600", "#b3a89c"),
    "border_color_primary": ("*neutral_200", "#35302b"),
    "border_color_accent": ("*primary_300", "#7c3a16"),
    "panel_background_fill": ("*neutral_100", "#181614"),
    "input_background_fill": ("#ffffff", "#151312"),
    "input_background_fill_focus": ("#ffffff", "#151312"),
    "input_border_color": ("*neutral_300", "#433d37"),
    "input_border_color_focus": ("*primary_500", "*primary_400"),
    "input_placeholder_color": ("*neutral_500", "#9c9186"),
    "checkbox_background_color": ("#ffffff", "#151312"),
    "checkbox_background_color_selected": ("*primary_600", "*primary_500"),
    "checkbox_border_color": ("*neutral_400", "#6b6158"),
    "checkbox_border_color_selected": ("*primary_600", "*primary_500"),
    "checkbox_label_background_fill": ("#ffffff", "#1d1a18"),
    "checkbox_label_background_fill_hover": ("*primary_50", "#26211d"),
    "checkbox_label_background_fill_selected": ("*primary_50", "#2c211a"),
    "checkbox_label_border_color": ("*neutral_300", "#433d37"),
    "checkbox_label_border_color_selected": ("*primary_500", "*primary_500"),
    "checkbox_label_text_color": ("*neutral_900", "#f2ece5"),
    "checkbox_label_text_color_selected": ("*neutral_900", "#f2ece5"),
    "button_primary_background_fill": ("*primary_600", "*primary_400"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_300"),
    "button_primary_border_color": ("*primary_600", "*primary_400"),
    "button_primary_border_color_hover": ("*primary_700", "*primary_300"),
    "button_primary_text_color": ("#ffffff", "#1f0d05"),
    "button_secondary_background_fill": ("#fffdfa", "#26221f"),
    "button_secondary_background_fill_hover": ("*neutral_100", "#2f2a26"),
    "button_secondary_border_color": ("*neutral_300", "#433d37"),
    "button_secondary_border_color_hover": ("*neutral_400", "#5a524a"),
    "button_secondary_text_color": ("*neutral_900", "#f2ece5"),
    "button_cancel_background_fill": ("#fffdfa", "#26221f"),
    "button_cancel_background_fill_hover": ("#fdecec", "#3a1d1b"),
    "button_cancel_border_color": ("#d9a6a1", "#6e3631"),
    "button_cancel_text_color": ("#a3201a", "#ffb3ab"),
    "code_background_fill": ("*neutral_100", "#151312"),
    "link_text_color": ("*primary_700", "*primary_300"),
    "link_text_color_hover": ("*primary_800", "*primary_200"),
    "table_border_color": ("*neutral_200", "#35302b"),
    "table_even_background_fill": ("#fffdfa", "#1d1a18"),
    "table_odd_background_fill": ("*neutral_50", "#181614"),
    "table_row_focus": ("*primary_50", "#2c211a"),
    "color_accent_soft": ("*primary_50", "#2c211a"),
    "block_shadow": ("0 1px 2px rgb(60 40 20 / .05)", "none"),
    "slider_color": ("*primary_600", "*primary_400"),
    "stat_background_fill": ("*primary_300", "*primary_700"),
    "error_background_fill": ("#fdf0ee", "#2c1715"),
    "error_border_color": ("#e3aaa4", "#6e3631"),
    "error_text_color": ("#a3201a", "#ffb3ab"),
}
SHAPES = {
    "block_border_width": "1px",
    "block_radius": "12px",
    "block_title_text_weight": "600",
    "block_label_text_weight": "500",
    "input_border_width": "1px",
    "input_radius": "9px",
    "checkbox_label_border_width": "1px",
    "button_border_width": "1px",
    "button_large_radius": "10px",
    "button_medium_radius": "9px",
    "button_small_radius": "8px",
    "button_large_padding": "10px 18px",
    "button_large_text_size": "15px",
    "button_large_text_weight": "600",
    "button_medium_text_weight": "600",
    "button_transition": "background-color .15s ease, border-color .15s ease",
    "button_primary_shadow": "none",
    "button_primary_shadow_hover": "none",
}


def build() -> gr.themes.Base:
    """The theme object that is given to the mount."""
    base = gr.themes.Base(
        primary_hue=EMBER,
        secondary_hue=EMBER,
        neutral_hue=PAPER,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_lg,
        text_size=sizes.text_md,
        # Latin comes from the bundled file, Chinese from whatever the system has.
        font=["Inter Variable", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei", "system-ui", "sans-serif"],
        font_mono=[
            LocalFont("IBM Plex Mono", weights=(400, 700)),
            "ui-monospace",
            "Noto Sans Mono CJK SC",
            "monospace",
        ],
    )
    colours = {name: light for name, (light, _) in COLOURS.items()}
    colours |= {f"{name}_dark": dark for name, (_, dark) in COLOURS.items()}
    return base.set(**colours, **SHAPES)
