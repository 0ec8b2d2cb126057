"""What a memory is: rules, their gates, and the parameters of a memory's layer. docs/rules.md: how to add one."""
