import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

/** Pushes with the defaults of java.net.http: java Push.java KEY BODY PUSHES URL... prints each status. */
public class Push {
    public static void main(String[] arguments) throws Exception {
        byte[] body = arguments[1].getBytes("UTF-8");
        for (int url = 3; url < arguments.length; url++) {
            HttpClient client = HttpClient.newHttpClient();
            for (int push = 0; push < Integer.parseInt(arguments[2]); push++) {
                var publisher = push % 2 == 0
                    ? BodyPublishers.ofByteArray(body)
                    : BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body));
                HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[url]))
                    .header("X-API-Key", arguments[0])
                    .header("Content-Type", "application/json")
                    .POST(publisher)
                    .build();
                System.out.println(client.send(request, BodyHandlers.ofString()).statusCode());
            }
        }
    }
}
