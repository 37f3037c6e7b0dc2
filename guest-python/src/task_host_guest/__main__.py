"""`python -m task_host_guest` builds the component of a project."""

from ._build import main

main()
