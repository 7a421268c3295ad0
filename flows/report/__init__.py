"""The report: results, figures, tables, pictures, the page."""
