// Java's own SOCKS client: fetches what a server at HOST:PORT sends back for the octets on
// standard input. It asks java.net.Socket and nothing else, so the JDK decides how.
//
//     java SocksClient PROXY-HOST PROXY-PORT HOST PORT [USER PASSWORD]

import java.io.OutputStream;
import java.net.Authenticator;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.Proxy;
import java.net.Socket;

public class SocksClient {
    public static void main(String[] words) throws Exception {
        if (words.length > 4) {
            Authenticator.setDefault(new Authenticator() {
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication(words[4], words[5].toCharArray());
                }
            });
        }
        InetSocketAddress gate = new InetSocketAddress(words[0], Integer.parseInt(words[1]));
        try (Socket socket = new Socket(new Proxy(Proxy.Type.SOCKS, gate))) {
            // A name goes to the proxy as it is. SOCKS4, of which Java has no 4a, takes none.
            int port = Integer.parseInt(words[3]);
            boolean literal = Character.isDigit(words[2].charAt(0));
            socket.connect(literal ? new InetSocketAddress(words[2], port)
                    : InetSocketAddress.createUnresolved(words[2], port), 30000);
            OutputStream out = socket.getOutputStream();
            System.in.transferTo(out);
            out.flush();
            socket.shutdownOutput();
            socket.getInputStream().transferTo(System.out);
            System.out.flush();
        } catch (java.net.SocketException error) {
            System.err.println(error.getMessage());
            System.exit(1);
        }
    }
}
