"""The `yunhe` command: stdout is data, stderr is progress and errors.

Not here: anything that decides or acts; each command is a thin shell over the control plane's HTTP API, the lab's
launcher or a pure function. Open `main.py`. Importing it must stay under 0.3 s, so everything heavy is imported inside
commands. Nobody imports this package, except that `controlplane.drill` uses `client.py` and `lab.py`.
"""
