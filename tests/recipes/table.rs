//! The corpus: small PKGBUILDs, and what makepkg and rbee make of each. Where they differ, the reason stands beside it.
//!
//! `@sha256:NAME@` is the sum of that fixture, `@FIXTURES@` the folder of all of them, `@HTTP@` a server of it,
//! `@COMMIT@` the first commit of the repository in `@FIXTURES@/proj`.

use Fate::{Built, Refused};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Built,
    Refused,
}

pub struct Case {
    pub name: &'static str,
    /// After the header, which it may override.
    pub text: &'static str,
    pub makepkg: Fate,
    pub rbee: Fate,
    /// Why the two differ, in their fates or their files.
    pub difference: Option<&'static str>,
}

pub const HEADER: &str = "pkgname=x\npkgver=1.0\npkgrel=1\narch=(any)\nlicense=(MIT)\n";

const fn same(name: &'static str, fate: Fate, text: &'static str) -> Case {
    Case { name, text, makepkg: fate, rbee: fate, difference: None }
}

const fn differs(
    name: &'static str,
    makepkg: Fate,
    rbee: Fate,
    reason: &'static str,
    text: &'static str,
) -> Case {
    Case { name, text, makepkg, rbee, difference: Some(reason) }
}

pub const CASES: &[Case] = &[
    // What bash makes of the variables.
    same("no functions at all is an empty package", Built, ""),
    same("one file", Built, r#"package() { install -Dm755 /dev/stdin "$pkgdir/usr/bin/x" <<<'echo hi'; }"#),
    same(
        "arrays over lines, +=, expansion, quoted spaces",
        Built,
        r#"
_names=(one 'two words'
  "three $pkgver")
_names+=("${_names[0]}-again")
depends=('bash'
         'a>=1.0')
depends+=(b)
package() {
  mkdir -p "$pkgdir/usr"
  for name in "${_names[@]}"; do printf '%s' "$name" > "$pkgdir/usr/$name"; done
  printf '%s\n' "${depends[@]}" > "$pkgdir/usr/depends"
}"#,
    ),
    same(
        "helper functions and heredocs",
        Built,
        r#"
_write() { cat > "$pkgdir/$1"; }
package() {
  mkdir "$pkgdir/usr"
  _write usr/plain <<END
version $pkgver, ${pkgname^^}
END
  _write usr/quoted <<'END'
$pkgver stays
END
}"#,
    ),
    same(
        "extglob in functions",
        Built,
        r#"
package() {
  mkdir "$pkgdir/usr"; touch "$pkgdir/usr/"{a.c,b.h,c.o}
  cd "$pkgdir/usr"; eval 'rm !(*.c)'
}"#,
    ),
    same(
        "variables of one phase in the next, but not in package()",
        Built,
        r#"
prepare() { seen=prepare; }
build() { seen+=-build; echo "$seen" > built; }
check() { seen+=-check; [[ $seen = prepare-build-check ]]; }
package() { install -Dm644 built "$pkgdir/usr/built"; echo "seen=$seen" > "$pkgdir/usr/seen"; }"#,
    ),
    same(
        "declare at the top is gone in functions",
        Built,
        r#"
declare top=set
package() { mkdir "$pkgdir/usr"; echo "[$top]" > "$pkgdir/usr/top"; }"#,
    ),
    same(
        "the words that recipes borrow",
        Built,
        r#"package() { msg "hello %s" you; msg2 more; warning careful; plain so; mkdir "$pkgdir/usr"; }"#,
    ),
    same(
        "code that set -u would not let pass",
        Built,
        r#"package() { mkdir "$pkgdir/usr"; echo "[$nothing]${none[3]}" > "$pkgdir/usr/u"; }"#,
    ),
    same(
        "umask",
        Built,
        r#"umask 0000
package() { mkdir "$pkgdir/usr"; touch "$pkgdir/usr/f"; chmod 0644 "$pkgdir/usr/f"; chmod 0755 "$pkgdir/usr"; }"#,
    ),
    // What the schema refuses.
    same("an array that is a string", Refused, "depends=bash\npackage() { :; }"),
    same("a string that is an array", Refused, "pkgver=(1 2)\npackage() { :; }"),
    same("a sparse array of sources", Refused, "source=([0]=a.txt [2]=b.txt)\nsha256sums=(SKIP SKIP)"),
    same("an empty source", Refused, "source=('')\nsha256sums=(SKIP)"),
    differs(
        "an empty element of another array",
        Built,
        Refused,
        "an empty element is a slip of the pen everywhere; makepkg minds it in some arrays only",
        "license=('')\npackage() { :; }",
    ),
    same("CRLF", Refused, "package() { :; }\r\n"),
    same("another architecture", Refused, "arch=(m68k)\npackage() { :; }"),
    same("any beside another architecture", Refused, "arch=(any x86_64)\npackage() { :; }"),
    same("no architecture", Refused, "arch=()\npackage() { :; }"),
    same("this architecture", Built, "arch=(m68k x86_64 aarch64)\npackage() { mkdir \"$pkgdir/usr\"; }"),
    same("a version with a hyphen", Refused, "pkgver=1-0\npackage() { :; }"),
    same("a version with a slash", Refused, "pkgver=../1\npackage() { :; }"),
    differs(
        "a version of two dots",
        Built,
        Refused,
        "a version is the name of a folder here, so none begins with a dot",
        "pkgver=..\npackage() { :; }",
    ),
    same("a name that begins with a hyphen", Refused, "pkgname=-x\npackage() { :; }"),
    same("a name with a slash", Refused, "pkgname=a/b\npackage() { :; }"),
    same("a release that is no number", Refused, "pkgrel=beta\npackage() { :; }"),
    same("an epoch", Built, "epoch=2\npackage() { mkdir \"$pkgdir/usr\"; }"),
    same("an unknown option", Refused, "options=(fastest)\npackage() { :; }"),
    differs(
        "the network in prepare()",
        Refused,
        Built,
        "rbee gives a phase the network only if the recipe asks by this option; makepkg always does and does not know it",
        "options=('network=prepare')\nprepare() { :; }\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    same("build() without package()", Refused, "build() { :; }"),
    same("pkgver set in package()", Refused, "package() {\n  pkgver=2\n}"),
    same("a bad dependency", Refused, "depends=('a b')\npackage() { :; }"),
    same("a failing last command of the PKGBUILD", Refused, "package() { :; }\nfalse"),
    same("a syntax error", Refused, "package() { if; }"),
    // How phases fail.
    same("prepare fails", Refused, "prepare() { false; }\npackage() { :; }"),
    same("build fails in its midst", Refused, "build() { false; true; }\npackage() { :; }"),
    same("check fails", Refused, "check() { return 7; }\npackage() { :; }"),
    same("package fails", Refused, "package() { ls /nowhere; }"),
    same(
        "a helper fails",
        Refused,
        "_help() { false; echo on; }\nbuild() { _help; true; }\npackage() { :; }",
    ),
    same("exit 3 in a function", Refused, "build() { exit 3; }\npackage() { :; }"),
    same("a failing subshell", Refused, "build() { (exit 5); }\npackage() { :; }"),
    same("a failing command in a subshell", Refused, "build() { (false; true); }\npackage() { :; }"),
    same("a failing substitution", Refused, "build() { v=$(false); }\npackage() { :; }"),
    same(
        "false | true passes, for there is no pipefail",
        Built,
        "build() { false | true; }\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    same(
        "local v=$(false) passes, and lint warns",
        Built,
        "build() {\n  local v=$(false)\n}\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    same(
        "a condition may be false",
        Built,
        "build() { if false; then :; fi; false || true; }\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    same("set +e helps nothing", Refused, "build() { set +e; false; true; }\npackage() { :; }"),
    differs(
        "exit 0 in build()",
        Built,
        Refused,
        "makepkg ends with 0 and no package; a build that ends before it is done has failed",
        "build() { exit 0; }\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    differs(
        "exit 0 at the top",
        Built,
        Refused,
        "makepkg ends with 0 and no package; here the variables were never told",
        "exit 0",
    ),
    // pkgver().
    same(
        "pkgver() tells the version",
        Built,
        r#"pkgver() { echo 2.5; }
build() { echo "$pkgver-$pkgrel" > v; }
package() { install -Dm644 v "$pkgdir/usr/v"; echo "$pkgver" > "$pkgdir/usr/w"; }"#,
    ),
    same("pkgver() tells nonsense", Refused, "pkgver() { echo 1-2; }\npackage() { :; }"),
    same("pkgver() tells nothing", Refused, "pkgver() { :; }\npackage() { :; }"),
    same("pkgver() fails", Refused, "pkgver() { echo 3; false; echo 4; }\npackage() { :; }"),
    same(
        "pkgver() sees what prepare() made",
        Built,
        "prepare() { echo 4.2 > told; }\npkgver() { cat told; }\npackage() { echo $pkgver > \"$pkgdir/$pkgver\"; }",
    ),
    // Several packages.
    same(
        "two packages",
        Built,
        r#"pkgbase=both
pkgname=(x y)
build() { echo built > b; }
package_x() { pkgdesc=mine; install -Dm644 b "$pkgdir/usr/x"; echo "$pkgname $pkgdesc" > "$pkgdir/usr/n"; }
package_y() { install -Dm644 b "$pkgdir/usr/y"; echo "$pkgname [$pkgdesc]" > "$pkgdir/usr/n"; }"#,
    ),
    same("a split package without its function", Refused, "pkgname=(x y)\npackage_x() { :; }"),
    same(
        "package() in a split package",
        Refused,
        "pkgname=(x y)\npackage_x() { :; }\npackage_y() { :; }\npackage() { :; }",
    ),
    same("package_x() for the only package", Built, "package_x() { mkdir \"$pkgdir/usr\"; }"),
    same("package() and package_x()", Refused, "package_x() { :; }\npackage() { :; }"),
    // Sums.
    same(
        "every kind of sum",
        Built,
        r#"source=(a.txt)
cksums=('@ck:a.txt@') md5sums=('@md5:a.txt@') sha1sums=('@sha1:a.txt@') sha224sums=('@sha224:a.txt@')
sha256sums=('@sha256:a.txt@') sha384sums=('@sha384:a.txt@') sha512sums=('@sha512:a.txt@') b2sums=('@b2:a.txt@')
package() { install -Dm644 a.txt "$pkgdir/usr/a.txt"; }"#,
    ),
    same("a bad cksum", Refused, "source=(a.txt)\ncksums=('@ck:b.txt@')\npackage() { :; }"),
    same("a bad md5sum", Refused, "source=(a.txt)\nmd5sums=('@md5:b.txt@')\npackage() { :; }"),
    same("a bad sha1sum", Refused, "source=(a.txt)\nsha1sums=('@sha1:b.txt@')\npackage() { :; }"),
    same("a bad sha224sum", Refused, "source=(a.txt)\nsha224sums=('@sha224:b.txt@')\npackage() { :; }"),
    same("a bad sha256sum", Refused, "source=(a.txt)\nsha256sums=('@sha256:b.txt@')\npackage() { :; }"),
    same("a bad sha384sum", Refused, "source=(a.txt)\nsha384sums=('@sha384:b.txt@')\npackage() { :; }"),
    same("a bad sha512sum", Refused, "source=(a.txt)\nsha512sums=('@sha512:b.txt@')\npackage() { :; }"),
    same("a bad b2sum", Refused, "source=(a.txt)\nb2sums=('@b2:b.txt@')\npackage() { :; }"),
    same(
        "one good sum and one bad",
        Refused,
        "source=(a.txt)\nsha256sums=('@sha256:a.txt@')\nmd5sums=('@md5:b.txt@')\npackage() { :; }",
    ),
    same(
        "SKIP for one of two",
        Built,
        "source=(a.txt b.txt)\nsha256sums=(SKIP '@sha256:b.txt@')\npackage() { install -Dm644 a.txt \"$pkgdir/usr/a\"; }",
    ),
    same("sums that are too few", Refused, "source=(a.txt b.txt)\nsha256sums=(SKIP)\npackage() { :; }"),
    same("no sums", Refused, "source=(a.txt)\npackage() { :; }"),
    same(
        "an architecture's own sources and sums",
        Built,
        r#"arch=(x86_64 aarch64)
source=(a.txt) sha256sums=('@sha256:a.txt@')
source_x86_64=(b.txt) sha256sums_x86_64=('@sha256:b.txt@')
source_aarch64=(b.txt) sha256sums_aarch64=('@sha256:b.txt@')
source_m68k=(nowhere.txt)
package() { install -Dm644 a.txt b.txt -t "$pkgdir/usr"; }"#,
    ),
    same(
        "a bad sum of an architecture's own",
        Refused,
        r#"arch=(x86_64 aarch64)
source_x86_64=(b.txt) sha256sums_x86_64=('@sha256:a.txt@')
source_aarch64=(b.txt) sha256sums_aarch64=('@sha256:a.txt@')
package() { :; }"#,
    ),
    // Sources.
    same("a missing local file", Refused, "source=(nowhere.txt)\nsha256sums=(SKIP)\npackage() { :; }"),
    same(
        "a missing remote file",
        Refused,
        "source=('file://@FIXTURES@/nowhere.txt')\nsha256sums=('@sha256:a.txt@')\npackage() { :; }",
    ),
    same(
        "a renamed remote file",
        Built,
        "source=('mine.txt::@HTTP@/a.txt')\nsha256sums=('@sha256:a.txt@')\npackage() { install -Dm644 mine.txt \"$pkgdir/usr/mine\"; }",
    ),
    differs(
        "a source whose name leads away",
        Refused,
        Refused,
        "makepkg 6.0.2 fails for want of the folder only; names with `/` or `..` are refused before anything is fetched",
        "source=('../../../../nowhere/x::file://@FIXTURES@/a.txt')\nsha256sums=('@sha256:a.txt@')\npackage() { :; }",
    ),
    same(
        "a tar.gz is unpacked",
        Built,
        "source=(hello-1.0.tar.gz)\nsha256sums=('@sha256:hello-1.0.tar.gz@')\npackage() { install -Dm755 hello-1.0/hello.sh \"$pkgdir/usr/bin/hello\"; }",
    ),
    same(
        "a tar.xz is unpacked",
        Built,
        "source=(hello-1.0.tar.xz)\nsha256sums=('@sha256:hello-1.0.tar.xz@')\npackage() { cp -r hello-1.0 \"$pkgdir/usr\"; }",
    ),
    differs(
        "a tar.zst is unpacked",
        Refused,
        Built,
        "where `file` does not look into zstd, makepkg 6.0.2 leaves the tar in it packed",
        "source=(hello-1.0.tar.zst)\nsha256sums=('@sha256:hello-1.0.tar.zst@')\npackage() { cp -r hello-1.0 \"$pkgdir/usr\"; }",
    ),
    same(
        "a tar.bz2 is unpacked",
        Built,
        "source=(hello-1.0.tar.bz2)\nsha256sums=('@sha256:hello-1.0.tar.bz2@')\npackage() { cp -r hello-1.0 \"$pkgdir/usr\"; }",
    ),
    same(
        "a zip is unpacked",
        Built,
        "source=(hello-1.0.zip)\nsha256sums=('@sha256:hello-1.0.zip@')\npackage() { cp -r hello-1.0 \"$pkgdir/usr\"; }",
    ),
    same(
        "an archive by content, whatever its name",
        Built,
        "source=('hello.data::file://@FIXTURES@/hello-1.0.zip')\nsha256sums=('@sha256:hello-1.0.zip@')\npackage() { cp -r hello-1.0 \"$pkgdir/usr\"; }",
    ),
    same(
        "one compressed file",
        Built,
        "source=(notes.txt.gz)\nsha256sums=('@sha256:notes.txt.gz@')\npackage() { install -Dm644 notes.txt \"$pkgdir/usr/notes\"; }",
    ),
    same(
        "noextract",
        Built,
        "source=(hello-1.0.tar.gz)\nnoextract=(hello-1.0.tar.gz)\nsha256sums=(SKIP)\npackage() { [[ ! -e hello-1.0 ]]; install -Dm644 hello-1.0.tar.gz \"$pkgdir/usr/h\"; }",
    ),
    same(
        "a source is in $startdir, too",
        Built,
        r#"source=(a.txt)
sha256sums=(SKIP)
package() { [[ $startdir/a.txt -ef a.txt ]]; install -Dm644 "$startdir/a.txt" "$pkgdir/usr/a"; }"#,
    ),
    differs(
        "a source is a file, not a link to it",
        Refused,
        Built,
        "sources are copied: a build that writes to one must not change the download that other builds use",
        "source=(a.txt)\nsha256sums=(SKIP)\npackage() { [[ ! -L a.txt ]]; mkdir \"$pkgdir/usr\"; }",
    ),
    // git.
    same(
        "git by tag",
        Built,
        "source=('git+file://@FIXTURES@/proj#tag=v1')\nsha256sums=(SKIP)\npackage() { install -Dm644 proj/file \"$pkgdir/usr/file\"; }",
    ),
    same(
        "git by commit",
        Built,
        "source=('git+file://@FIXTURES@/proj#commit=@COMMIT@')\nsha256sums=(SKIP)\npackage() { install -Dm644 proj/file \"$pkgdir/usr/file\"; }",
    ),
    same(
        "git by branch, under another name, and pkgver() from it",
        Built,
        r#"source=('mine::git+file://@FIXTURES@/proj#branch=side')
sha256sums=(SKIP)
pkgver() { cd mine; printf 'r%s' "$(git rev-list --count HEAD)"; }
package() { install -Dm644 mine/file "$pkgdir/usr/file-$pkgver"; }"#,
    ),
    same(
        "git's own head",
        Built,
        "source=('git+file://@FIXTURES@/proj')\nsha256sums=(SKIP)\npackage() { install -Dm644 proj/file \"$pkgdir/usr/file\"; }",
    ),
    same(
        "git by a tag that is not there",
        Refused,
        "source=('git+file://@FIXTURES@/proj#tag=v9')\nsha256sums=(SKIP)\npackage() { :; }",
    ),
    same(
        "git by a forged tag",
        Refused,
        "source=('git+file://@FIXTURES@/proj#tag=forged')\nsha256sums=(SKIP)\npackage() { :; }",
    ),
    // What lies in a package.
    same(
        "links that stay inside",
        Built,
        "package() { mkdir -p \"$pkgdir/usr/lib\"; touch \"$pkgdir/usr/lib/a\"; ln -s a \"$pkgdir/usr/lib/b\"; ln -s ../lib/a \"$pkgdir/usr/lib/c\"; }",
    ),
    differs(
        "a link out of the package",
        Built,
        Refused,
        "packages are not unpacked to `/` here, so a link by an absolute path names a file of the node's",
        "package() { mkdir \"$pkgdir/usr\"; ln -s /etc/passwd \"$pkgdir/usr/p\"; }",
    ),
    differs(
        "setuid",
        Built,
        Refused,
        "nothing that rbee installs runs as somebody else",
        "package() { install -Dm4755 /dev/null \"$pkgdir/usr/s\"; }",
    ),
    differs(
        "a device",
        Built,
        Refused,
        "fakeroot pretends to make devices; here nothing does, and a package has none",
        "package() { mkdir \"$pkgdir/usr\"; mknod \"$pkgdir/usr/null\" c 1 3; }",
    ),
    same("a hidden file at the top", Refused, "package() { touch \"$pkgdir/.hidden\"; }"),
    same("a newline in a name", Refused, "package() { touch \"$pkgdir/\"$'a\\nb'; }"),
    same(
        "ownership has no effect",
        Built,
        r#"package() {
  install -d -o root -g root -m755 "$pkgdir/usr"
  install -o 0 -g 0 -m644 /dev/null "$pkgdir/usr/f"
  install -Dm755 -o nobody /dev/null "$pkgdir/usr/bin/g"
  chown -R root:root "$pkgdir"; chgrp 0 "$pkgdir/usr/f"
}"#,
    ),
    same(
        "hard links inside of the package",
        Built,
        "build() { echo a > a; ln a b; }\npackage() { mkdir \"$pkgdir/usr\"; cp a \"$pkgdir/usr/a\"; ln \"$pkgdir/usr/a\" \"$pkgdir/usr/b\"; }",
    ),
    differs(
        "a scriptlet",
        Built,
        Built,
        "install= is never run, and need not be there; makepkg only packs it",
        "install=x.install\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    differs(
        "writing outside of the work folder",
        Built,
        Refused,
        "walls: a recipe writes below its own folder only",
        "build() { echo > @FIXTURES@/written; }\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    differs(
        "the network in build()",
        Built,
        Refused,
        "walls: no phase but fetch reaches the network unless the recipe asks",
        "build() { exec 3<>/dev/tcp/@HTTP_ADDRESS@; }\npackage() { mkdir \"$pkgdir/usr\"; }",
    ),
    differs(
        "$pkgdir in build()",
        Refused,
        Refused,
        "both close it until package(); root's makepkg does not exist",
        "build() { mkdir -p \"$pkgdir/usr\"; }\npackage() { :; }",
    ),
];
