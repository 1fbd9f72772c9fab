# A web server in p1's own network that answers a path as its name says, until p1 is gone. In Ruby, which
# Vagrant brings along: ruby server.rb DIR; `DIR/k3s` is what it has, `DIR/asked` what it was asked for.
require 'socket'
parent, dir = Process.ppid, ARGV[0]
server = TCPServer.new('127.0.0.1', 8080)
File.write("#{dir}/listening", '')
Thread.new { sleep 0.1 while Process.ppid == parent; exit! }
body = File.binread("#{dir}/k3s")
loop do
  Thread.new(server.accept) do |client|
    path, from = client.gets.split[1], 0
    while (line = client.gets) && line != "\r\n"
      from = $1.to_i if line =~ /^range: bytes=(\d+)-/i
    end
    File.open("#{dir}/asked", 'a') { |f| f.puts "#{path} #{from}" }
    head = lambda do |status|
      client.write "HTTP/1.1 #{status}\r\nContent-Length: #{body.size - from}\r\n"
      client.write "Content-Range: bytes #{from}-#{body.size - 1}/#{body.size}\r\n" if from > 0
      client.write "Connection: close\r\n\r\n"
    end
    case path
    when '/404', '/503' then client.write "HTTP/1.1 #{path[1..]} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    when '/cut' then head.call(from > 0 ? 206 : 200); client.write(from > 0 ? body[from..] : body[0, 20])
    when '/slow' then head.call(200); body.each_char { |c| client.write c; sleep 0.2 }
    when '/silent' then head.call(200); sleep 60
    else head.call(from > 0 ? 206 : 200); client.write body[from..]
    end
    client.close
  rescue SystemCallError
    client.close
  end
end
