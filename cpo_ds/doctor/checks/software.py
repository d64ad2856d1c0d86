"""What the hosts answered -> what is wrong with it: logins, software, files. Pure."""

from __future__ import annotations

from cpo_ds.doctor.checks.findings import Finding, Row, by_value, differences, names, together
from cpo_ds.doctor.hostfile import fold
from cpo_ds.doctor.survey import Survey


def login(survey: Survey) -> Row:
    """Every host answers over ssh, without a question."""
    findings = [Finding((n,), trouble.what, trouble.fix) for n, trouble in survey.lost.items()]
    alone = survey.hosts[0].name if len(survey.hosts) == 1 else ""
    if alone in survey.lost and alone in ("localhost", "127.0.0.1"):
        findings.append(
            Finding(
                (alone,),
                "the launcher logs in here too, unless it is told not to",
                "add to the deepspeed command: --no_ssh_check --master_addr 127.0.0.1",
            )
        )
    return Row("login", f"{len(survey.facts)} of {len(survey.hosts)} hosts", tuple(findings))


def identity(survey: Survey) -> Row:
    """Each line of the hostfile is a host of its own, with a name of its own."""
    twice, same_name = [], []
    for (_, hostname), hosts in by_value(
        {name: (some.boot, some.hostname) for name, some in survey.facts.items()}
    ).items():
        if len(hosts) > 1:
            twice.append(
                Finding(
                    hosts,
                    f"they are one host ({hostname})",
                    f"leave one of the lines in {survey.wanted.hostfile}, with all of its slots",
                )
            )
    of_twice = {name for finding in twice for name in finding.hosts[1:]}
    hostnames = {n: f.hostname for n, f in survey.facts.items() if n not in of_twice}
    for hostname, hosts in by_value(hostnames).items():
        if len(hosts) > 1:
            same_name.append(
                Finding(
                    hosts,
                    f"all call themselves {hostname}, and ranks are told apart by it",
                    "give each a name of its own: hostnamectl set-hostname NAME",
                )
            )
    own = sorted(set(hostnames.values()))
    return Row("host names", fold(own), (*twice, *same_name))


def python(survey: Survey) -> Row:
    """The same Python at the same path: the launcher starts that on every host."""
    wanted = survey.wanted.python
    missing = tuple(name for name in survey.facts if name not in survey.ready)
    findings = []
    if missing:
        findings.append(
            Finding(
                missing,
                f"there is no working {wanted}, which the launcher starts on every host",
                "set up the same environment at the same path (bash scripts/setup.sh), or put the "
                "checkout on a file system that all hosts share",
            )
        )
    versions = {name: some.python_version for name, some in survey.ready.items()}
    findings += differences(versions, "Python", lambda v: f"make .venv there anew with Python {v}")
    where = f"{together(versions)} at {wanted}" if versions else f"not at {wanted}"
    return Row("Python", where, tuple(findings))


def packages(survey: Survey) -> Row:
    """The same versions of all that takes part in training."""
    known = sorted({package for some in survey.ready.values() for package in some.versions})
    same: list[str] = []
    different: list[str] = []
    findings = []
    for package in known:
        versions = {n: f.versions.get(package, "none") for n, f in survey.ready.items()}
        found = differences(
            versions,
            package,
            lambda v, p=package: (  # type: ignore[misc]
                f"remove it there: pip uninstall {p}"
                if v == "none"
                else f"bash scripts/setup.sh there, or pip install '{p}=={v}'"
            ),
        )
        findings += found
        text = f"{package} {together(versions)}"
        (different if found else same).append(text)
    shown = [text for text in same if text.split()[0] in ("torch", "deepspeed", "transformers")]
    others = len(same) - len(shown)
    more = [f"{others} more alike"] if others and shown else []
    return Row("packages", "; ".join(different) or ", ".join(shown + more), tuple(findings))


def checkout(survey: Survey) -> Row:
    """The same code: every rank runs its own host's."""
    findings = []
    folder = str(survey.wanted.folder)
    no_folder = tuple(n for n, f in survey.ready.items() if folder not in f.there)
    if no_folder:
        findings.append(
            Finding(
                no_folder,
                f"there is no folder {folder}, where the launcher starts the ranks",
                "put the checkout there, or on a file system that all hosts share",
            )
        )
    sources = {name: tuple(sorted(f.sources.items())) for name, f in survey.ready.items()}
    groups = by_value(sources)
    common = dict(next(iter(groups), ()))
    for other, hosts in list(groups.items())[1:]:
        theirs, what = dict(other), f"there is no {survey.wanted.package}"
        files = [f for f in {**common, **theirs} if common.get(f) != theirs.get(f)]
        if theirs:
            what = f"other code than on {fold(groups[tuple(sorted(common.items()))])}: "
            what += names(files)
        same = next((f.commit for n, f in survey.ready.items() if n not in hosts), "")
        update = f"git checkout {same[:12]}" if same else "copy the checkout again"
        if same and theirs and survey.ready[hosts[0]].commit == same:
            update = "the commit is the same: see what git status says there"
        findings.append(Finding(hosts, what, f"bring it to the same state ({update})"))
    commits = {name: f.commit[:12] or "no commit" for name, f in survey.ready.items()}
    return Row("checkout", f"{together(commits)}, {len(common)} files" if commits else "",
               tuple(findings))  # fmt: skip


def recipe(survey: Survey) -> Row:
    """The same recipe and DeepSpeed file: every rank reads its own host's."""
    findings = []
    for file in map(str, survey.wanted.files):
        digests = {name: f.files.get(file) for name, f in survey.ready.items()}
        missing = tuple(name for name, digest in digests.items() if digest is None)
        if missing:
            findings.append(Finding(missing, f"there is no {file}", "copy it there"))
        there = {name: digest for name, digest in digests.items() if digest is not None}
        for hosts in list(by_value(there).values())[1:]:
            first = next(iter(by_value(there).values()))
            findings.append(
                Finding(hosts, f"{file} is another than on {fold(first)}", "copy it there again")
            )
    return Row("recipe", names(path.name for path in survey.wanted.files), tuple(findings))


def model(survey: Survey) -> Row:
    """The model is whole on every host, each of which reads it."""
    findings, sizes = [], []
    for path in map(str, survey.wanted.models):
        trees = {name: f.trees.get(path) for name, f in survey.ready.items()}
        missing = tuple(name for name, tree in trees.items() if tree is None)
        if missing:
            findings.append(Finding(missing, f"there is no {path}", "copy it there"))
        listings = {n: tuple(sorted(tree.items())) for n, tree in trees.items() if tree is not None}
        groups = by_value(listings)
        for other, hosts in list(groups.items())[1:]:
            common, theirs = dict(next(iter(groups))), dict(other)
            files = [f for f in {**common, **theirs} if common.get(f) != theirs.get(f)]
            what = f"{path} is not as on {fold(next(iter(groups.values())))}: {names(files)}"
            findings.append(Finding(hosts, what, "copy it there again"))
        if groups:
            sizes.append(f"{path} ({sum(dict(next(iter(groups))).values()) / 2**30:.1f} GiB)")
    shown = sizes or map(str, survey.wanted.models)
    return Row("model", ", ".join(shown), tuple(findings))


def data(survey: Survey) -> Row:
    """The data is on the first host: rank 0 reads it for all."""
    first = survey.hosts[0].name
    there = survey.ready[first].there if first in survey.ready else ()
    findings = [
        Finding((first,), f"there is no {path}; rank 0 reads it", "copy it there")
        for path in map(str, survey.wanted.data)
        if first in survey.ready and path not in there
    ]
    return Row("data", ", ".join(map(str, survey.wanted.data)), tuple(findings))
