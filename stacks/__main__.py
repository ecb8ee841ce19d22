"""What `pulumi up` runs in this folder."""

from stacks.program import program

program()
