file { '/etc/cluster':
  content => "A node of ${facts['cluster']}.\n",
}
