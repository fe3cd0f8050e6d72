//! The SVG as PDF: one page of the figure's size on paper, lines as lines, text as text in the built-in font.
//!
//! No other font of the machine is looked at, and nothing of the time: the same SVG gives the same bytes.

use super::paint::FONT;
use std::sync::Arc;
use svg2pdf::usvg::{Options, Tree, fontdb};
use svg2pdf::{ConversionOptions, PageOptions};

/// Pixels per inch in which the parser counts; what number does not matter, since sizes are in inches.
const DPI: f32 = 96.0;

/// The bytes of the file.
pub(super) fn pdf(svg: &str) -> Result<Vec<u8>, String> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    let family = fonts.faces().next().and_then(|f| f.families.first()).map(|(name, _)| name.clone());
    let family = family.ok_or("the built-in font has no name")?;
    fonts.set_sans_serif_family(&family);
    let options = Options { dpi: DPI, font_family: family, fontdb: Arc::new(fonts), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(|e| e.to_string())?;
    svg2pdf::to_pdf(&tree, ConversionOptions::default(), PageOptions { dpi: DPI }).map_err(|e| e.to_string())
}
