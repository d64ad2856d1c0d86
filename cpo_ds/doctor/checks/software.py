"""Checks of each host's logins, software and files.

Each check takes the survey and returns its row. Nothing here asks a host.
"""

from __future__ import annotations

from cpo_ds.doctor.checks.findings import Finding, Row, by_value, describe, differences, first_few
from cpo_ds.doctor.hostfile import fold
from cpo_ds.doctor.survey import Survey
from cpo_ds.shipped import set_up


def login(survey: Survey) -> Row:
    """Every host lets ssh in without asking for anything."""
    findings = [Finding((n,), trouble.problem, trouble.fix) for n, trouble in survey.lost.items()]
    alone = survey.hosts[0].name if len(survey.hosts) == 1 else ""
    if alone in survey.lost and alone in ("localhost", "127.0.0.1"):
        findings.append(
            Finding(
                (alone,),
                "DeepSpeed's launcher logs in to this host too, unless an option says not to",
                "add to the deepspeed command: --no_ssh_check --master_addr 127.0.0.1",
            )
        )
    return Row("login", f"{len(survey.facts)} of {len(survey.hosts)} hosts", tuple(findings))


def identity(survey: Survey) -> Row:
    """Each line of the hostfile is another host, and each host has another name."""
    # Lines that lead to one host: the same running kernel and the same name.
    twice, same_name = [], []
    for (_, hostname), hosts in by_value(
        {name: (facts.boot, facts.hostname) for name, facts in survey.facts.items()}
    ).items():
        if len(hosts) > 1:
            twice.append(
                Finding(
                    hosts,
                    f"these are one host ({hostname})",
                    f"keep one of the lines in {survey.run.hostfile}, with all slots of the host",
                )
            )

    # Different hosts with the same name.
    of_twice = {name for finding in twice for name in finding.hosts[1:]}
    hostnames = {n: f.hostname for n, f in survey.facts.items() if n not in of_twice}
    for hostname, hosts in by_value(hostnames).items():
        if len(hosts) > 1:
            same_name.append(
                Finding(
                    hosts,
                    f"all have the name {hostname}, but ranks tell hosts apart by their names",
                    "give each host its own name: hostnamectl set-hostname NAME",
                )
            )
    own = sorted(set(hostnames.values()))
    return Row("host names", fold(own), (*_byte_order_mark(survey), *twice, *same_name))


def _byte_order_mark(survey: Survey) -> list[Finding]:
    """A problem if the hostfile begins with the mark that some editors add."""
    if not survey.run.has_marked_hostfile:
        return []
    file = survey.run.hostfile
    problem = (
        f"{file} begins with a byte order mark, which DeepSpeed's launcher takes for a part of the "
        "first name"
    )
    fix = f"remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' {file}"
    return [Finding((survey.hosts[0].name,), problem, fix)]


def python(survey: Survey) -> Row:
    """The launcher's Python works on every host, at the same path and in the same version."""
    run_python = survey.run.python
    missing = tuple(name for name in survey.facts if name not in survey.ready)
    findings = []
    if missing:
        findings.append(
            Finding(
                missing,
                f"there is no working {run_python}, which the launcher starts on every host",
                f"set up the same environment at the same path ({set_up()}), or put it on a file "
                "system that all hosts share",
            )
        )
    versions = {name: facts.python_version for name, facts in survey.ready.items()}
    findings += differences(versions, "Python", lambda v: f"make .venv again there with Python {v}")
    seen = f"{describe(versions)} at {run_python}" if versions else f"not at {run_python}"
    return Row("Python", seen, tuple(findings))


def packages(survey: Survey) -> Row:
    """All packages that take part in training have the same versions on every host."""
    # Sort the packages into those with one version everywhere and the others.
    known = sorted({package for facts in survey.ready.values() for package in facts.versions})
    same: list[str] = []
    different: list[str] = []
    findings = []
    for package in known:
        versions = {n: f.versions.get(package, "none") for n, f in survey.ready.items()}
        new = differences(
            versions,
            package,
            lambda v, p=package: (  # type: ignore[misc]
                f"remove it there: pip uninstall {p}"
                if v == "none"
                else f"run {set_up()} there, or pip install '{p}=={v}'"
            ),
        )
        findings += new
        (different if new else same).append(f"{package} {describe(versions)}")

    # Show the differences, or else the versions that matter most.
    shown = [text for text in same if text.split()[0] in ("torch", "deepspeed", "transformers")]
    others = len(same) - len(shown)
    more = [f"{others} others the same"] if others and shown else []
    return Row("packages", "; ".join(different) or ", ".join(shown + more), tuple(findings))


def checkout(survey: Survey) -> Row:
    """Every host has the same code of this package: each rank runs the code of its own host."""
    findings = []
    folder = str(survey.run.folder)
    no_folder = tuple(n for n, f in survey.ready.items() if folder not in f.existing_paths)
    if no_folder:
        findings.append(
            Finding(
                no_folder,
                f"there is no folder {folder}, in which the launcher starts the ranks",
                "put the checkout there, or on a file system that all hosts share",
            )
        )

    # Compare checksums of all files with those that most hosts have.
    sources = {name: tuple(sorted(f.sources.items())) for name, f in survey.ready.items()}
    groups = by_value(sources)
    common = dict(next(iter(groups), ()))
    for other, hosts in list(groups.items())[1:]:
        theirs, problem = dict(other), f"there is no {survey.run.package}"
        files = [f for f in {**common, **theirs} if common.get(f) != theirs.get(f)]
        if theirs:
            problem = (
                f"the code differs from that on {fold(groups[tuple(sorted(common.items()))])}: "
            )
            problem += first_few(files)

        # git can bring the checkout to the right commit, unless it is there and was edited.
        right = next((f.commit for n, f in survey.ready.items() if n not in hosts), "")
        update = f"git checkout {right[:12]}" if right else "copy the checkout again"
        if right and theirs and survey.ready[hosts[0]].commit == right:
            update = "the commit is the same, so look at git status there"
        findings.append(Finding(hosts, problem, f"bring it to the same state ({update})"))
    commits = {name: f.commit[:12] or "no commit" for name, f in survey.ready.items()}
    seen = f"{describe(commits)}, {len(common)} files" if commits else ""
    return Row("checkout", seen, tuple(findings))


def recipe(survey: Survey) -> Row:
    """Every host has the same recipe and DeepSpeed file: each rank reads those of its own host."""
    findings = []
    for file in map(str, survey.run.files):
        digests = {name: f.files.get(file) for name, f in survey.ready.items()}
        missing = tuple(name for name, digest in digests.items() if digest is None)
        if missing:
            findings.append(Finding(missing, f"there is no {file}", "copy it there"))
        existing = {name: digest for name, digest in digests.items() if digest is not None}
        first, *others = list(by_value(existing).values()) or [()]
        for hosts in others:
            problem = f"{file} differs from the one on {fold(first)}"
            findings.append(Finding(hosts, problem, "copy it there again"))
    return Row("recipe", first_few(path.name for path in survey.run.files), tuple(findings))


def model(survey: Survey) -> Row:
    """Every host has all files of the model, because each host reads its own."""
    findings, sizes = [], []
    for path in map(str, survey.run.models):
        trees = {name: f.trees.get(path) for name, f in survey.ready.items()}
        missing = tuple(name for name, tree in trees.items() if tree is None)
        if missing:
            findings.append(Finding(missing, f"there is no {path}", "copy it there"))

        # Compare names and sizes of the files with those that most hosts have.
        listings = {n: tuple(sorted(tree.items())) for n, tree in trees.items() if tree is not None}
        groups = by_value(listings)
        for other, hosts in list(groups.items())[1:]:
            common, theirs = dict(next(iter(groups))), dict(other)
            files = [f for f in {**common, **theirs} if common.get(f) != theirs.get(f)]
            problem = f"{path} differs from the one on {fold(next(iter(groups.values())))}: "
            findings.append(Finding(hosts, problem + first_few(files), "copy it there again"))
        if groups:
            sizes.append(f"{path} ({sum(dict(next(iter(groups))).values()) / 2**30:.1f} GiB)")
    shown = sizes or map(str, survey.run.models)
    return Row("model", ", ".join(shown), tuple(findings))


def data(survey: Survey) -> Row:
    """The data is on the first host, because rank 0 reads it for all ranks."""
    first = survey.hosts[0].name
    existing = survey.ready[first].existing_paths if first in survey.ready else ()
    findings = [
        Finding((first,), f"there is no {path}; rank 0 reads it", "copy it there")
        for path in map(str, survey.run.data)
        if first in survey.ready and path not in existing
    ]
    return Row("data", ", ".join(map(str, survey.run.data)), tuple(findings))
