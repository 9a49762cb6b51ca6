# SPDX-License-Identifier: Apache-2.0
SUMMARY = "Debian's pseudo, and the configuration of Debian's apt that root file systems are installed with"
LICENSE = "Apache-2.0"

inherit native

PROVIDES = "virtual/fakeroot-native"
INHIBIT_DEFAULT_DEPS = "1"

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

# What recipes-devtools/apt of OE-core installs as apt.conf.sample.
do_install() {
    install -d ${D}${sysconfdir}/apt
    cat > ${D}${sysconfdir}/apt/apt.conf.sample <<'CONF'
Dir "#ROOTFS#/"
{
  State "var/lib/apt/"
  {
    Lists "#APTCONF#/lists/";
    status "#ROOTFS#/var/lib/dpkg/status";
  };
  Cache "#APTCONF#/";
  Etc "#APTCONF#/";
  Log
  {
    Terminal "/dev/null";
    History "/dev/null";
    Planner "/dev/null";
  };
  Bin
  {
    methods "/usr/lib/apt/methods/";
    dpkg "/usr/bin/dpkg";
  };
};
APT
{
  Install-Recommends "true";
  Immediate-Configure "false";
  Architecture "i586";
  Get { Assume-Yes "true"; };
};
Acquire { AllowInsecureRepositories "true"; };
DPkg::Options {"--root=#ROOTFS#";"--admindir=#ROOTFS#/var/lib/dpkg";"--force-all";"--no-debsig"};
DPkg::Path "";
CONF
}
