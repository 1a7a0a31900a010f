"""Tables, figures and boards, made from saved records."""
