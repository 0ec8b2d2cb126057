"""The intermediate representation: graphs, types, text, rules of validity."""
