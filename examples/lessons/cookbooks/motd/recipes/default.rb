file '/etc/motd' do
  content "A worker that Chef prepared.\n"
end
