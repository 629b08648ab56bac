//! Tables for people: columns without a frame, as kubectl prints them, so that they can be cut and
//! grepped too.

use comfy_table::{ContentArrangement, Table, presets};

/// A table with upper-case headings.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.map(str::to_uppercase));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_a_frame() {
        let text = table(
            ["node", "address"],
            [
                ["client".to_owned(), "172.18.0.1".to_owned()],
                ["control-plane".to_owned(), "172.18.0.4".to_owned()],
            ],
        );
        assert_eq!(text, "NODE            ADDRESS\nclient          172.18.0.1\ncontrol-plane   172.18.0.4\n");
    }
}
