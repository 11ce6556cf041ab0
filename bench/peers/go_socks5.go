// The go-socks5 library as a server with its own defaults, on the address given as argument; with
// a user and a password as further arguments it asks for them.
package main

import (
	"log"
	"os"

	socks5 "github.com/armon/go-socks5"
)

func main() {
	config := &socks5.Config{}
	if len(os.Args) > 3 {
		config.Credentials = socks5.StaticCredentials{os.Args[2]: os.Args[3]}
	}
	server, err := socks5.New(config)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.ListenAndServe("tcp", os.Args[1]))
}
