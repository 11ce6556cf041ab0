// The go-socks5 library as a server with its own defaults, on the address given as argument.
package main

import (
	"log"
	"os"

	socks5 "github.com/armon/go-socks5"
)

func main() {
	server, err := socks5.New(&socks5.Config{})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.ListenAndServe("tcp", os.Args[1]))
}
