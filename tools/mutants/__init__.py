"""Mutation testing of the mathematics: a seeded sample of small faults, each of which some test should notice.

    make mutants FAMILY=spectral N=60

A fault is one application of one of mutmut's operators (``+`` to ``-``, ``1`` to ``2``, an argument dropped, …) to one
place of one file of ``src/PACKAGE/FAMILY``. It is killed when a test of that file fails, survives when all pass. Three
things make it quick: only the tests that execute the faulty statement run, the shortest first, up to the first failure;
every trial is forked from a process that has imported all libraries but the package itself; two trials run at a time.

`places` finds and draws faults, `trial` runs tests in a forked process, `run` puts both together and remembers.
"""
