"""Downstream evaluation: how well, and with how few labels, an encoder does tasks that it was not trained for."""
