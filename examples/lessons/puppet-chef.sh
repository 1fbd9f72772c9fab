#!/bin/sh
# The other provisioners of the notes: what p1 has Vagrant run, and when. Nothing is made.
set -eu
p1 -f puppet-chef.yaml validate
p1 -f puppet-chef.yaml render
grep -A 6 -E "type: '(puppet|chef)" .p1/puppet-chef/rendered/Vagrantfile
