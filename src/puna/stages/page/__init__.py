"""The report page: charts as inline SVG, one HTML file that needs no network, no script and no build step."""
