"""Land-cover knowledge: products, sheets, legends, and the exact class shares of footprints."""
